// Package access decides who a caller of the HTTP API or the console is, and what he may do.
//
// There are two kinds of callers. The operator has the token of admin.token and sees all venues. A
// venue's user has a short token that the app signs itself with a key of console.keys: a JSON Web
// Token (RFC 7519) with the claims
//
//	aud    webhook-agent
//	venue  whose endpoints, deliveries and replays the caller sees
//	scope  read, or manage to change something as well
//	exp    when the token ends, at most LongestToken ahead
//	iat    when it was signed (optional)
//	sub    who the user is in the app, for the log (optional)
//
// The algorithm belongs to the key, never to the token: HS256 for a shared key, EdDSA for the public
// key of an Ed25519 pair. A token is not kept, so it may be used until it ends. Who must not use the
// API any more gets no new token; taking a key out of console.keys ends all tokens that it signed.
//
// The API takes a token with each request. The console takes one once, by a form, and gives the
// browser a session in return (Sessions).
package access
