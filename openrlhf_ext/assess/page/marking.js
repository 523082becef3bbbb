// Passages of a text, marked by words: with the mouse, or with a caret that the keyboard moves.
// Places are counted in Unicode code points, as the server counts them, and not in JavaScript's UTF-16 units.

const SPACE = /^\s+$/u;
const PUNCTUATION = /^[^\p{L}\p{N}\s]+$/u;

/** [{start, end, text, word}]: words with the punctuation behind them, and the gaps in between. */
export function tokens(text) {
  const found = [];
  let place = 0;
  for (const { segment } of new Intl.Segmenter("en", { granularity: "word" }).segment(text)) {
    const end = place + Array.from(segment).length;
    const last = found.at(-1);
    if (last?.word && PUNCTUATION.test(segment)) {
      last.text += segment;
      last.end = end;
    } else {
      found.push({ start: place, end, text: segment, word: !SPACE.test(segment) });
    }
    place = end;
  }
  return found;
}

export class Marking {
  #tokens = [];
  #words = []; // places of words among the tokens
  #pieces = []; // their elements
  #caret = 0; // of words
  #anchor = null; // where the passage that is being chosen begins
  spans = [];
  active = false;

  /** `changed()` is called after every change of the marks. */
  constructor(element, changed) {
    this.element = element;
    this.changed = changed;
    element.addEventListener("mouseup", () => this.#bySelection());
    element.addEventListener("click", (event) => this.#byClick(event));
  }

  show(text, spans, enabled) {
    this.enabled = enabled;
    this.active = false;
    this.#anchor = null;
    this.#caret = 0;
    this.spans = spans.map((span) => [...span]);
    this.#tokens = tokens(text);
    this.#words = this.#tokens.flatMap((token, place) => (token.word ? [place] : []));
    this.#pieces = this.#tokens.map((token) => {
      const piece = document.createElement("span");
      piece.textContent = token.text;
      return piece;
    });
    this.element.replaceChildren(...this.#pieces);
    this.#paint();
  }

  enter() {
    if (!this.enabled || !this.#words.length) return;
    this.active = true;
    this.#paint();
    this.#follow();
  }

  leave() {
    this.active = false;
    this.#anchor = null;
    this.#paint();
  }

  get choosing() {
    return this.#anchor !== null;
  }

  /** Whether the key was for the marks. */
  key(key) {
    const moves = {
      ArrowLeft: () => this.#caret - 1,
      ArrowRight: () => this.#caret + 1,
      ArrowUp: () => this.#line(-1),
      ArrowDown: () => this.#line(1),
      Home: () => 0,
      End: () => this.#words.length - 1,
    };
    if (key in moves) {
      this.#caret = Math.max(0, Math.min(this.#words.length - 1, moves[key]()));
    } else if (key === " " || key === "Enter") {
      if (this.#anchor === null) this.#anchor = this.#caret;
      else this.finish();
    } else if (key === "Backspace" || key === "Delete") {
      this.#remove(this.#token(this.#caret).start);
    } else {
      return false;
    }
    this.#paint();
    this.#follow();
    return true;
  }

  /** A passage that was begun ends here. */
  finish() {
    if (this.#anchor === null) return;
    const [first, last] = [this.#anchor, this.#caret].sort((a, b) => a - b);
    this.#anchor = null;
    this.#add(this.#token(first).start, this.#token(last).end);
  }

  #token(word) {
    return this.#tokens[this.#words[word]];
  }

  #add(start, end) {
    const apart = this.spans.filter((span) => span[1] < start || span[0] > end);
    const touching = this.spans.filter((span) => span[1] >= start && span[0] <= end);
    const merged = [Math.min(start, ...touching.map((s) => s[0])), Math.max(end, ...touching.map((s) => s[1]))];
    this.spans = [...apart, merged].sort((a, b) => a[0] - b[0]);
    this.#paint();
    this.changed();
  }

  #remove(place) {
    const left = this.spans.filter((span) => !(span[0] <= place && place < span[1]));
    if (left.length === this.spans.length) return;
    this.spans = left;
    this.#paint();
    this.changed();
  }

  #bySelection() {
    const selection = getSelection();
    if (!this.enabled || selection.isCollapsed || !selection.rangeCount) return;
    const range = selection.getRangeAt(0);
    const touched = this.#words.filter((place) => {
      const piece = document.createRange();
      piece.selectNodeContents(this.#pieces[place]);
      return (
        range.compareBoundaryPoints(Range.END_TO_START, piece) < 0 &&
        range.compareBoundaryPoints(Range.START_TO_END, piece) > 0
      );
    });
    if (!touched.length) return;
    selection.removeAllRanges();
    this.#selected = true;
    this.#add(this.#tokens[touched[0]].start, this.#tokens[touched.at(-1)].end);
  }

  #selected = false; // the click that ends a selection removes nothing

  #byClick(event) {
    const place = this.#pieces.indexOf(event.target);
    if (this.enabled && !this.#selected && place >= 0) this.#remove(this.#tokens[place].start);
    this.#selected = false;
  }

  /** The word above or below the caret's. */
  #line(step) {
    const here = this.#box(this.#caret);
    const middle = (here.left + here.right) / 2;
    let best = this.#caret;
    let row = null;
    for (let word = this.#caret + step; word >= 0 && word < this.#words.length; word += step) {
      const box = this.#box(word);
      if (Math.abs(box.top - here.top) < 4) continue;
      row ??= box.top;
      if (Math.abs(box.top - row) >= 4) break;
      const distance = Math.abs((box.left + box.right) / 2 - middle);
      if (best === this.#caret || distance < Math.abs((this.#box(best).left + this.#box(best).right) / 2 - middle)) {
        best = word;
      }
    }
    return best;
  }

  #box(word) {
    return this.#pieces[this.#words[word]].getClientRects()[0];
  }

  #paint() {
    const [from, to] = this.#anchor === null ? [null, null] : [this.#anchor, this.#caret].sort((a, b) => a - b);
    const chosen = from === null ? null : [this.#token(from).start, this.#token(to).end];
    this.#tokens.forEach((token, place) => {
      const inside = (span) => span && span[0] <= token.start && token.start < span[1];
      const classes = this.#pieces[place].classList;
      classes.toggle("marked", this.spans.some(inside));
      classes.toggle("choosing", Boolean(inside(chosen)));
      classes.toggle("caret", this.active && this.#words[this.#caret] === place);
    });
  }

  #follow() {
    this.#pieces[this.#words[this.#caret]]?.scrollIntoView({ block: "nearest" });
  }
}
