// Lists what a person should not see below `root`, shadow roots included.
(root) => {
  const faults = [];
  const visible = (element) => {
    const box = element.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && getComputedStyle(element).visibility !== "hidden";
  };
  const inspect = (element) => {
    // The logbook is narrow and cuts off by itself.
    if (["STYLE", "SCRIPT", "HA-LOGBOOK"].includes(element.tagName)) return;
    const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    // {client_id} is what one may write into the topic of the presence.
    const text = own.map((node) => node.textContent).join("").replaceAll("{client_id}", "").trim();
    if (text && visible(element)) {
      // A field's or an option's key, a translation key, a placeholder without a value.
      if (/^[a-z0-9]+(_[a-z0-9]+)+\*?$|^(component|config|ui|state)\.[\w.]+$|\{[a-z_]+\}|undefined|\[object /.test(text)) {
        faults.push(`raw: ${text}`);
      }
      const style = getComputedStyle(element);
      if (style.textOverflow === "ellipsis" && element.scrollWidth > element.clientWidth + 1) {
        faults.push(`cut off: ${text}`);
      }
    }
    for (const child of element.shadowRoot?.children ?? []) inspect(child);
    for (const child of element.children) inspect(child);
  };
  inspect(root);
  return faults;
}
