"use strict";
const find = document.getElementById("find");
if (find) {
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const entries = [...document.querySelectorAll("[data-find]")].map((element) => ({
    element, text: plain(element.dataset.find), isClip: element.classList.contains("card"),
  }));
  const clips = entries.filter((entry) => entry.isClip).length;
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const sections = document.querySelectorAll("main > section");
  const filter = () => {
    const words = plain(find.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { element, text, isClip } of entries) {
      const fits = words.every((word) => text.includes(word));
      element.hidden = !fits;
      if (fits && isClip) shown += 1;
    }
    count.textContent = words.length ? `${shown} of ${clips}` : "";
    nothing.hidden = shown > 0;
    for (const section of sections) section.hidden = shown === 0;
  };
  find.addEventListener("input", filter);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target === find) return;
    event.preventDefault();
    find.focus();
  });
  find.closest("[role=search]").hidden = false;
  filter();
}
