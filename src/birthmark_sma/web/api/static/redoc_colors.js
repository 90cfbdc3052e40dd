// ReDoc has no dark theme of its own: in dark mode, give it one before it starts.
const dark = matchMedia("(prefers-color-scheme: dark)");
if (dark.matches) {
  const [page, panel, line, ink, quiet] = ["#0e1413", "#151d1c", "#263230", "#e6eceb", "#9bada8"];
  const [accent, bad] = ["#4fd1c0", "#ff8f84"];
  const shade = { color: ink, backgroundColor: panel, tabTextColor: accent };
  document.documentElement.classList.add("dark-mode");
  document.documentElement.style.colorScheme = "dark";
  document.body.style.background = page;
  const theme = {
    colors: {
      primary: { main: accent },
      success: { main: accent },
      error: { main: bad },
      gray: { 50: panel, 100: line },
      text: { primary: ink, secondary: quiet },
      border: { dark: line, light: line },
      responses: { success: shade, error: { ...shade, tabTextColor: bad }, redirect: shade, info: shade },
    },
    schema: { linesColor: line, typeNameColor: quiet, typeTitleColor: quiet, requireLabelColor: bad, nestedBackground: panel, arrow: { color: quiet } },
    typography: {
      links: { color: accent, visited: accent, hover: ink },
      code: { color: bad, backgroundColor: line },
    },
    sidebar: {
      backgroundColor: panel,
      textColor: ink,
      activeTextColor: accent,
      groupItems: { activeBackgroundColor: line, activeTextColor: accent },
      level1Items: { activeBackgroundColor: line, activeTextColor: accent },
      arrow: { color: ink },
    },
    rightPanel: { backgroundColor: "#0a0f0e", servers: { overlay: { backgroundColor: panel, textColor: ink }, url: { backgroundColor: page } } },
    codeBlock: { backgroundColor: panel },
  };
  document.querySelector("redoc").setAttribute("theme", JSON.stringify(theme));
}
dark.addEventListener("change", () => location.reload());
