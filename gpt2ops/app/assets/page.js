// What needs no server: the alternatives of a token, copying, continuing, Ctrl+Enter, and saving the history.
(() => {
  const percent = (p) => (p >= 0.1 ? (100 * p).toFixed(0) : p >= 0.001 ? (100 * p).toFixed(1) : "< 0.1") + " %";
  const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
  let panel, pinned = null;

  const cell = (row, text) => { const td = row.insertCell(); td.textContent = text; return td; };
  const show = (token) => {
    if (!panel) {
      panel = document.createElement("div");
      panel.id = "alternatives";
      panel.setAttribute("role", "status");
      document.querySelector("#answer").append(panel);
    }
    const [probability, rank, others] = JSON.parse(token.dataset.t);
    const text = token.textContent;
    const head = document.createElement("div");
    head.className = "own";
    head.textContent = `“${visible(text)}” ${percent(probability)}` + (rank ? `, number ${rank} of the model's choices` : "");
    const table = document.createElement("table");
    for (const [other, p] of others) {
      const row = table.insertRow();
      if (other === text) row.className = "own";
      cell(row, visible(other));
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = `${Math.max(1, 100 * p)}%`;
      row.insertCell().append(bar);
      cell(row, percent(p));
    }
    panel.replaceChildren(head, table);
    panel.style.display = "block";
    document.querySelectorAll(".t.current").forEach((other) => other.classList.remove("current"));
    token.classList.add("current");
    token.scrollIntoView({ block: "nearest" });
    panel.style.left = panel.style.top = "";
    if (matchMedia("(max-width: 860px)").matches) return;  // there it lies at the lower edge
    const place = token.getBoundingClientRect();
    panel.style.left = `${Math.max(8, Math.min(place.left, innerWidth - panel.offsetWidth - 8))}px`;
    const below = place.bottom + 6;
    panel.style.top = `${below + panel.offsetHeight < innerHeight ? below : Math.max(8, place.top - panel.offsetHeight - 6)}px`;
  };
  const hide = () => {
    pinned = null;
    if (panel) panel.style.display = "none";
    document.querySelectorAll(".t.current").forEach((token) => token.classList.remove("current"));
  };

  const textOf = (button) => button.closest("article").querySelector(".body").textContent;
  const copy = async (button, text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a page that is not on loopback nor encrypted has no clipboard
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  };
  const actions = {
    copy: (button) => copy(button, textOf(button)),
    "copy-code": (button) => copy(button, button.parentElement.querySelector("code").textContent),
    continue: (button) => {
      const area = document.querySelector("#prompt textarea");
      area.value = textOf(button);
      area.dispatchEvent(new Event("input", { bubbles: true }));
      area.focus();
      area.scrollTop = area.scrollHeight;
    },
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) return actions[button.dataset.do](button);
    const token = event.target.closest(".t");
    if (token && token !== pinned) { show(token); pinned = token; } else hide();
  });
  document.addEventListener("mouseover", (event) => {
    if (pinned) return;
    const token = event.target.closest && event.target.closest(".t");
    if (token) show(token); else if (panel && panel.style.display === "block") hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      document.querySelector("#generate")?.click();
      return event.preventDefault();
    }
    if (event.key === "Escape") return hide();
    const body = document.activeElement?.closest?.(".body");
    if (!body || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const tokens = [...body.querySelectorAll(".t")];
    const next = tokens[tokens.indexOf(pinned) + (event.key === "ArrowRight" ? 1 : -1)] ?? tokens[0];
    if (next) { show(next); pinned = next; event.preventDefault(); }
  });

  window.gpt2Save = (text) => {
    if (!text) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
    link.download = "history.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
  };
  window.gpt2Colour = (on) => document.body.classList.toggle("coloured", on);
  document.body.classList.add("coloured");
})();
