// What plays: a video, or where there is none that plays, a clock of the same interface that moves the film strip.

import { clock, make, styled } from "./dom.js";

/** Plays one video; `onTime(seconds)` follows it, `onState()` says that it plays or stops. */
export class Player {
  constructor(video, onTime, onState) {
    Object.assign(this, { duration: video.duration, frame: 1 / video.fps, onTime, onState });
    this.now = 0;
    this.stopAt = Infinity; // where a detection that is played alone ends
    this.started = null; // of the clock: when it started to run, and from where
    this.element = null;
    this.screen = make("div.screen");
    this.note = make("p.soft.note", { role: "status" });
    this.strip = video.strip ? filmPicture(video) : null;
    if (video.file) this.useVideo(video);
    else this.withoutVideo(video.strip ? "Film strip only: the report was made without the video file." : "");
  }

  useVideo(video) {
    const element = make("video", { src: video.file, preload: "metadata", playsinline: true, "aria-label": video.id });
    element.disableRemotePlayback = true;
    this.element = element;
    for (const name of ["play", "pause", "ended"]) element.addEventListener(name, () => this.onState());
    element.addEventListener("seeked", () => this.tick());
    element.addEventListener("timeupdate", () => this.tick());
    element.addEventListener("error", () => {
      this.withoutVideo("The browser cannot play this file" + (this.strip ? "; the film strip stands in." : "."));
    });
    element.addEventListener("loadeddata", () => {
      if (!element.seekable.length || !element.seekable.end(0)) {
        this.note.textContent =
          "The server does not send parts of the file, so the video shows but cannot seek. " +
          "Open the page as a file, or use a server that answers Range requests.";
      }
      if (this.now) element.currentTime = this.now;
    });
    const follow = () => {
      if (this.element !== element) return;
      this.tick();
      element.requestVideoFrameCallback(follow);
    };
    if (element.requestVideoFrameCallback) element.requestVideoFrameCallback(follow);
    this.screen.replaceChildren(element);
  }

  withoutVideo(why) {
    this.element = null;
    this.note.textContent = why;
    this.screen.replaceChildren(...(this.strip ? [this.strip.element] : []));
    this.screen.hidden = !this.strip;
    this.show();
  }

  get playing() {
    return this.element ? !this.element.paused && !this.element.ended : this.started !== null;
  }

  play(until = Infinity) {
    this.stopAt = until;
    if (this.now >= Math.min(this.duration, until) - 1e-3) this.seek(until < Infinity ? this.now : 0, until);
    if (this.element) {
      this.element.play().catch(() => this.onState());
    } else {
      this.started = [performance.now(), this.now];
      this.run();
      this.onState();
    }
  }

  pause() {
    if (this.element) this.element.pause();
    this.started = null;
    this.onState();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  /** Goes to a time; what plays, plays on from there, until `until`. */
  seek(seconds, until = Infinity) {
    this.now = Math.min(Math.max(seconds, 0), this.duration);
    this.stopAt = until;
    if (this.element) this.element.currentTime = this.now;
    if (this.started) this.started = [performance.now(), this.now];
    this.show();
  }

  /** Of the video: where it is now. */
  tick() {
    if (!this.element || this.element.seeking || !this.element.readyState) return;
    this.now = Math.min(this.element.currentTime, this.duration);
    this.limit();
    this.show();
  }

  /** Of the clock: where it is now, at each picture of the screen. */
  run() {
    if (!this.started || this.element) return;
    this.now = Math.min(this.started[1] + (performance.now() - this.started[0]) / 1000, this.duration);
    this.limit();
    if (this.now >= this.duration) this.pause();
    this.show();
    requestAnimationFrame(() => this.run());
  }

  limit() {
    if (this.now < this.stopAt || !this.playing) return;
    const end = this.stopAt;
    this.pause();
    this.seek(end);
  }

  show() {
    this.strip?.show(this.now);
    this.onTime(this.now);
  }

  /** Of a player that another takes the place of. */
  end() {
    this.started = null;
    this.onTime = this.onState = () => {};
    if (!this.element) return;
    this.element.pause();
    this.element.removeAttribute("src");
    this.element = null;
  }
}

/** A picture of the film strip, which is one image of all pictures side by side, large. */
function filmPicture(video) {
  const { image, count, width, height } = video.strip;
  const element = make("div.film", { role: "img" });
  styled(element, { "--image": `url("${image}")`, "--count": count, "--shape": `${width} / ${height}` });
  return {
    element,
    show(now) {
      const i = Math.min(Math.floor((now / video.duration) * count), count - 1);
      element.setAttribute("aria-label", `Picture at ${clock(now)}`);
      styled(element, { "--at": count > 1 ? i / (count - 1) : 0 });
    },
  };
}
