// Answers on their way to the disk: sent in order, each until the server says that it is saved. They outlive a reload.

const QUICKEST_MS = 500;
const SLOWEST_MS = 5000;

export class Outbox {
  #kept;
  #waiting;
  #sending = false;
  #wake = () => {};
  #tell;

  /** `tell(state, unsaved, sentence)` hears "saved", "saving", "away" or "refused". */
  constructor(storage, tell) {
    this.#kept = storage;
    this.#waiting = storage.read("outbox") ?? [];
    this.#tell = tell;
    addEventListener("online", () => this.#wake());
  }

  get unsaved() {
    return this.#waiting.length;
  }

  put(path, body) {
    this.#waiting.push({ path, body });
    this.#keep();
    this.send();
  }

  /** Resolves when all that waits is saved. */
  async send() {
    if (this.#sending) return;
    this.#sending = true;
    if (this.#waiting.length) this.#tell("saving", this.#waiting.length);
    while (this.#waiting.length) {
      const { path, body } = this.#waiting[0];
      const answer = await ask(path, body);
      if (answer.refused) {
        this.#tell("refused", this.#waiting.length, answer.sentence);
        break; // it stays, and is sent again after a reload
      }
      if (answer.away) {
        this.#tell("away", this.#waiting.length, answer.sentence);
        await this.pause();
        continue;
      }
      this.#waiting.shift();
      this.#keep();
      this.#pauseMs = QUICKEST_MS;
    }
    this.#sending = false;
    if (!this.#waiting.length) this.#tell("saved", 0);
  }

  #pauseMs = QUICKEST_MS;

  /** A while that grows, or until the network is back. */
  async pause() {
    await new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, this.#pauseMs);
    });
    this.#pauseMs = Math.min(2 * this.#pauseMs, SLOWEST_MS);
  }

  reached() {
    this.#pauseMs = QUICKEST_MS;
  }

  #keep() {
    this.#kept.write("outbox", this.#waiting.length ? this.#waiting : null);
  }
}

/** What the server says: its JSON, or {away} where it cannot be reached or has a fault, or {refused}. */
export async function ask(path, body) {
  try {
    const response = await fetch(path, {
      signal: AbortSignal.timeout(10000),
      ...(body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    });
    const value = await response.json();
    if (response.ok) return { value };
    return { [response.status < 500 ? "refused" : "away"]: true, sentence: value.error ?? response.statusText };
  } catch {
    return { away: true };
  }
}

/** What a reload must not lose, under this link's name; in memory alone where the browser keeps nothing. */
export class Kept {
  #name = (name) => `assess ${location.pathname} ${name}`;
  #memory = new Map();

  read(name) {
    try {
      return JSON.parse(localStorage.getItem(this.#name(name)));
    } catch {
      return this.#memory.get(name) ?? null;
    }
  }

  write(name, value) {
    this.#memory.set(name, value);
    try {
      if (value === null) localStorage.removeItem(this.#name(name));
      else localStorage.setItem(this.#name(name), JSON.stringify(value));
    } catch {
      addEventListener("beforeunload", (event) => value !== null && event.preventDefault());
    }
  }
}
