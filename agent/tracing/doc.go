// Package tracing sends OpenTelemetry traces of events by OTLP over HTTP. It is off unless
// tracing.endpoint is set; there is no Tracer then.
//
// # What a trace shows
//
//	event    from the commit of the event until each of its deliveries is recorded for the first
//	         time
//	  match      from the reading of the event until its endpoints are known
//	  queue      a delivery waits in memory, for its turn
//	  attempt    one request to the customer's server
//	  record     from the end of an attempt until the ledger has committed its result
//
// Times are the database's, as all times of the agent.
//
// # Which events are traced
//
// An event with a traceparent is traced if its producer records that trace. It is then a part of
// it: the producer's span is the parent of the span event. Of the other events tracing.sample are
// traced.
//
// The ids are derived from the event (idsOf), and so is the choice. So a retry that comes back from
// the database, a replay, and a new leader go on with the trace of the event, and nothing has to be
// stored. Only the spans event and match are missing from what they send.
//
// # What it may cost
//
// Nothing waits for it. A span that has ended goes into a queue with room for queueLength. One that
// finds no room, or that the collector does not take within exportTimeout, is dropped and counted.
// One goroutine sends (Tracer.Run). When the agent stops, it has stopTimeout for the rest. An event
// that very many endpoints want has spans of its own for mostDeliveries of them.
//
// # What it never shows
//
// Attributes hold ids, types, venues, the host of a URL, classes and numbers. They never hold a
// payload, an answer, a secret, or the path or query of a URL.
package tracing
