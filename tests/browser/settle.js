// Makes a page look the same whenever it is looked at: fonts are there, folders are those of an installed Home Assistant,
// and times, but for those that a form speaks of, are one fixed time.
async (root) => {
  await document.fonts.ready;
  const folders = [[/\/[\w/.-]+\/quic_bridge\/\w+/g, "/config/quic_bridge/01J9ZC4V8Q"]];
  const times = [
    [/(?<![\d:])\d{1,2}:\d\d:\d\d(?![\d:])/g, "9:41:00"],
    [/(?<![\d:])\d{1,2}:\d\d(?![\d:])/g, "9:41"],
    [/\bPM\b/g, "AM"],
    [/[上下]午/g, "上午"],
    [/\b[A-Z][a-z]+ \d{1,2}, 20\d\d\b/g, "October 1, 2026"],
    [/20\d\d年\d{1,2}月\d{1,2}日/g, "2026年10月1日"],
    [/\b\d+ (second|minute)s?\b/g, "1 minute"],
    [/\d+ ?(秒钟?|分钟)/g, "1分钟"],
    [/\bnow\b/g, "1 minute ago"],
    [/现在/g, "1分钟前"],
  ];
  const changes = root.tagName === "DIALOG" ? folders : [...folders, ...times];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) {
      node.textContent = changes.reduce((text, [from, to]) => text.replace(from, to), node.textContent);
    }
    if (node.shadowRoot) walk(node.shadowRoot);
    // What is in a slot lies outside of what it is in.
    if (node.tagName === "SLOT") node.assignedNodes().forEach(walk);
    if (!["STYLE", "SCRIPT"].includes(node.tagName)) node.childNodes.forEach(walk);
  };
  walk(root);
}
