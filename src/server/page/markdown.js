// The little of Markdown that models write, as DOM nodes: no HTML of a text is ever interpreted.

function inline(text, parent) {
  const pattern = /(`+)(.+?)\1|\*\*(.+?)\*\*|(?<![\w*])\*([^*\s][^*]*)\*(?!\w)/gs;
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    parent.append(text.slice(last, match.index));
    const [tag, content] =
      match[2] !== undefined ? ['code', match[2]] :
      match[3] !== undefined ? ['strong', match[3]] : ['em', match[4]];
    const node = document.createElement(tag);
    if (tag === 'code') node.textContent = content;
    else inline(content, node);
    parent.append(node);
    last = match.index + match[0].length;
  }
  parent.append(text.slice(last));
}

function codeBlock(lines) {
  const pre = document.createElement('pre');
  const code = document.createElement('code');
  code.textContent = lines.join('\n');
  const copy = document.createElement('button');
  copy.textContent = 'Copy';
  copy.onclick = () => {
    navigator.clipboard.writeText(code.textContent);
    copy.textContent = 'Copied';
  };
  pre.append(code, copy);
  return pre;
}

function list(lines, ordered) {
  const node = document.createElement(ordered ? 'ol' : 'ul');
  for (const line of lines) {
    const item = document.createElement('li');
    inline(line.replace(/^\s*([-*]|\d+[.)])\s+/, ''), item);
    node.append(item);
  }
  return node;
}

export function render(text) {
  const out = document.createDocumentFragment();
  const lines = text.split('\n');
  const isItem = (line) => /^\s*([-*]|\d+[.)])\s+/.test(line);
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    if (line.startsWith('```')) {
      const begin = ++i;
      while (i < lines.length && !lines[i].startsWith('```')) ++i;
      out.append(codeBlock(lines.slice(begin, i)));
      ++i;
    } else if (/^#{1,6} /.test(line)) {
      const level = Math.min(6, line.indexOf(' ') + 2);
      const heading = document.createElement('h' + level);
      inline(line.replace(/^#+ /, ''), heading);
      out.append(heading);
      ++i;
    } else if (isItem(line)) {
      const begin = i;
      while (i < lines.length && isItem(lines[i])) ++i;
      out.append(list(lines.slice(begin, i), /^\s*\d/.test(line)));
    } else if (line.trim() === '') {
      ++i;
    } else {
      const begin = i;
      while (i < lines.length && lines[i].trim() !== '' && !lines[i].startsWith('```') &&
             !/^#{1,6} /.test(lines[i]) && !isItem(lines[i])) ++i;
      const paragraph = document.createElement('p');
      lines.slice(begin, i).forEach((l, n) => {
        if (n > 0) paragraph.append(document.createElement('br'));
        inline(l, paragraph);
      });
      out.append(paragraph);
    }
  }
  return out;
}
