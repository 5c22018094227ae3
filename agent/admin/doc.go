// Package admin has the listeners: one for operators, with /healthz, /readyz, /metrics and the API,
// behind a gate that decides who may ask for what, and one for venues, with the API alone.
//
// It knows nothing of the agent except what its Config gives: whether the agent is ready, its
// metrics, and a function to report a panic to.
package admin
