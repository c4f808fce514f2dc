// What is around the page: tabs and colors.

import { byId } from "./dom.js";

export const RESULTS = "#tab=results"; // no id of an element, to which the browser would scroll
const SCHEMES = { auto: "light dark", light: "light", dark: "dark" };

/** Shows one of two tabs, of which the second is "results". */
export function showTab(tabs, name) {
  for (const tab of tabs) {
    byId(tab).hidden = tab !== name;
    byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    byId(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  if (name === "results" && location.hash !== RESULTS) history.replaceState(null, "", RESULTS);
}

/** Lets clicks and arrow keys choose a tab: `show(tab)`, and `clicked(tab)` after a click. */
export function prepareTabs(tabs, show, clicked) {
  for (const tab of tabs) {
    byId(`tab-${tab}`).addEventListener("click", () => {
      show(tab);
      clicked(tab);
    });
    byId(`tab-${tab}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = tabs.find((one) => one !== tab);
      show(other);
      byId(`tab-${other}`).focus();
      event.stopPropagation();
    });
  }
}

export function theme() {
  const button = byId("theme");
  const names = Object.keys(SCHEMES);
  const show = (name) => {
    document.documentElement.style.colorScheme = SCHEMES[name];
    button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[name];
    button.setAttribute("aria-label", `Colors: ${button.textContent}`);
    button.dataset.name = name;
  };
  button.addEventListener("click", () => show(names[(names.indexOf(button.dataset.name) + 1) % names.length]));
  show("auto");
}
