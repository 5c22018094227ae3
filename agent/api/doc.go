// Package api is the HTTP API: what the commands do with endpoints, deliveries and replays, for the
// app, for support, and for pages that a venue's own people see.
//
// # Follow a request
//
//	Handler.ServeHTTP   who asks (package access), from which origin, with which body; limits
//	huma                decodes and validates by the Go types of the operation's input
//	an operation        calls package manage or a view of package outbox
//	problem             turns an error into a problem document (RFC 9457)
//
// # Who sees what
//
// An operation gets the database by caller.view alone: the view of one venue for a venue's token, the
// operator's for the operator's token. So it cannot show another venue's rows, whatever ids it is
// given: the view's statements name the venue on the row itself. What no view has, such as the
// overview, is an operation of the operator alone (needOperator). The tests walk the document of the
// API and try every operation with the ids and the token of two venues, so a new operation is covered
// without a new test.
//
// # Limits
//
// The API has a connection pool of its own (outbox.Config) and statements of a bounded time, so that
// no page holds up a delivery. The time of all requests together is a small part of the processors',
// and that of one caller a part of it (package limits). Besides, requests are bounded by caller and kind,
// in number at a time, in the size of their bodies, and in the number of streams.
//
// # The document
//
// The OpenAPI document is made from the Go types and served at /api/v1/openapi.json.
// testdata/openapi.json is the same, so that a change shows in review; go test ./agent/api -update
// writes it anew.
//
// Nothing outside this package knows huma.
package api
