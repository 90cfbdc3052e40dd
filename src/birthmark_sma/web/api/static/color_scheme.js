// Swagger UI has a dark theme for the class "dark-mode", but does not ask the browser for it.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
// Its tables of response headers keep their colour for light pages.
const sheet = new CSSStyleSheet();
sheet.replaceSync(".dark-mode .swagger-ui .headers .header-col { color: inherit; }");
document.adoptedStyleSheets.push(sheet);
