// Package feed passes on what the agent records, to those who look at the delivery log at that
// moment: streams of the API, and pages that are open. It costs next to nothing while nobody looks,
// and the data path waits for nobody.
//
// A stream has a Subscription, with a queue of its own. A page asks every few seconds (Feed.Tail):
// all pages of a venue share one short list of the newest rows, so that many open pages cost no more
// than one.
package feed
