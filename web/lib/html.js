// Everything a view imports from the vendored modules. Text reaches the page as children of `html`, which escapes it.
import { h, render, createRef, Fragment } from "../vendor/preact.js";
import { useEffect, useLayoutEffect, useMemo, useRef, useState, useCallback } from "../vendor/preact-hooks.js";
import { signal, computed, effect, batch, useSignal, useComputed, useSignalEffect } from "../vendor/signals.js";
import htm from "../vendor/htm.js";

export const html = htm.bind(h);
export { h, render, createRef, Fragment, useEffect, useLayoutEffect, useMemo, useRef, useState, useCallback };
export { signal, computed, effect, batch, useSignal, useComputed, useSignalEffect };
