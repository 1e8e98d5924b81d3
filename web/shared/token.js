/** Read tokens (JWT) without verifying them: only to decide which tabs share a stream and when to renew. */

/** Return the claims of a token, or an empty object. */
export function claimsOf(token) {
  try {
    const text = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (letter) => letter.charCodeAt(0)))) ?? {};
  } catch {
    return {};
  }
}

const VOLATILE = new Set(["exp", "iat", "nbf", "jti", "auth_time", "sid", "nonce", "at_hash"]);

/** Return a key for the user of a token: its claims without those that differ between tokens of one user. */
export function identityOf(token) {
  const claims = claimsOf(token);
  if (claims.sub === undefined) return null;
  return JSON.stringify(Object.entries(claims).filter(([name]) => !VOLATILE.has(name)).sort(([a], [b]) => (a < b ? -1 : 1)));
}
