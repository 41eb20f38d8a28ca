// Makes a page look the same whenever it is looked at: fonts are there, and times are one fixed time.
async (root) => {
  await document.fonts.ready;
  const replace = (node) => {
    node.textContent = node.textContent
      .replace(/(?<![\d:])\d{1,2}(:\d\d)(:\d\d)?(?![\d:])/g, (_, minutes, seconds) => (seconds ? "9:41:00" : "9:41"))
      .replace(/\bPM\b/g, "AM")
      .replace(/[上下]午/g, "上午")
      .replace(/\b[A-Z][a-z]+ \d{1,2}, 20\d\d\b/g, "October 1, 2026")
      .replace(/20\d\d年\d{1,2}月\d{1,2}日/g, "2026年10月1日")
      .replace(/\b\d+ (second|minute)s?\b/g, "1 minute")
      .replace(/\d+ ?(秒钟?|分钟)/g, "1分钟")
      .replace(/\bnow\b/g, "1 minute ago")
      .replace(/现在/g, "1分钟前");
  };
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) replace(node);
    if (node.shadowRoot) walk(node.shadowRoot);
    if (!["STYLE", "SCRIPT"].includes(node.tagName)) node.childNodes.forEach(walk);
  };
  walk(root);
}
