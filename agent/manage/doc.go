// Package manage has what people do with endpoints, deliveries and replays: it checks what they
// give, asks the outbox, and returns what they are shown. The commands and the HTTP API are two
// skins of it, so that both have the same rules and the same fields.
//
// A Desk works with a view (outbox.View): that of one venue, or the operator's. It can do nothing
// that its view cannot.
package manage
