// Package console has the pages of the agent: for operators, and for a venue's users within the app's
// Settings page.
//
// # Follow a request
//
//	Handler.ServeHTTP  headers that bound what a page may do; door.guard refuses other origins
//	door               who asks, by the session in a cookie (door.go, signin.go, links.go)
//	Handler.serve      limits, time, and errors as pages (visit.go)
//	a page             asks package manage, or a view of package outbox, and fills in a template
//	render             templates/ in the visitor's language, compressed (render.go)
//
// # Who sees what
//
// The operators' pages are below /console/, those of a venue below /console/v/VENUE/. They are the
// same pages: a visit has a view of package outbox, of all venues or of the one in the path, and no
// other way to the database. An operator sees only the host of a URL, and the data of an event only
// after a click, which is logged.
//
// # Means
//
// The pages are made in Go and work without a script, but for their live parts. The scripts in
// static/ are modules that only add to a page: no script makes HTML out of text, and the
// Content-Security-Policy forbids it (Trusted Types). There is no build step, and nothing comes from
// another server. A form answers with a redirect, but for what must not be asked for again: a new
// secret, the result of a sample, and data that an operator asked for.
//
// # Languages
//
// The English text is its own key. locales/pt.json has the Portuguese one. A test finds every text of
// the templates and of the Go files there.
package console
