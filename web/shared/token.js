/** What a token (JWT) says. Nothing here verifies it: it decides who shares a stream and when to renew. */

/** What a token says, which decides nothing but who shares and when to renew. */
export function claimsOf(token) {
  try {
    const text = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (letter) => letter.charCodeAt(0)))) ?? {};
  } catch {
    return {};
  }
}

const PASSING = new Set(["exp", "iat", "nbf", "jti", "auth_time", "sid", "nonce", "at_hash"]);

/** All that a token says of its user, without what differs from one token to the next. */
export function identityOf(token) {
  const claims = claimsOf(token);
  if (claims.sub === undefined) return null;
  return JSON.stringify(Object.entries(claims).filter(([name]) => !PASSING.has(name)).sort(([a], [b]) => (a < b ? -1 : 1)));
}
