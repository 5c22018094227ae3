// Package admin is the listener for operators: /healthz, /readyz and /metrics, behind a gate that
// decides who may ask for what.
//
// It knows nothing of the agent except what its Config gives: whether the agent is ready, its
// metrics, and a function to report a panic to.
package admin
