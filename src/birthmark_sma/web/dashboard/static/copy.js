// Shows the buttons that copy a text of the page. Without this script, the text can be selected.
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    const told = document.getElementById("copied");
    try {
      await navigator.clipboard.writeText(source.textContent);
      told.textContent = "Copied";
    } catch {
      // Browsers allow it over HTTPS and on localhost alone.
      getSelection().selectAllChildren(source);
      told.textContent = "Selected: press Ctrl+C";
    }
  });
}
