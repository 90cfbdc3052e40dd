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
    fab: { backgroundColor: line, color: accent },
  };
  // The colours that ReDoc does not read from its theme. Patterns have no class but a generated one.
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`
    .dark-mode .redoc-wrap :is(h5, caption) { color: ${quiet}; border-color: ${line}; }
    .dark-mode .redoc-wrap h5 > span { color: ${ink}; }
    .dark-mode .redoc-wrap h5 + svg polygon { fill: ${ink}; }
    .dark-mode .redoc-wrap span.sc-bypJrT { color: ${accent}; }
    .dark-mode .redoc-wrap td div > span + div > button { color: ${page}; }
    .dark-mode .redoc-wrap td { border-color: ${line}; }
    .dark-mode .redoc-wrap li.react-tabs__tab--selected { color: ${ink}; background: ${line}; }
    .dark-mode .redoc-wrap .menu-content a { border-color: ${line}; }
  `);
  document.adoptedStyleSheets.push(sheet);
  document.querySelector("redoc").setAttribute("theme", JSON.stringify(theme));
}
dark.addEventListener("change", () => location.reload());
