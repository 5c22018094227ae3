// Package admin is the listener for operators: /healthz, /readyz and /metrics, behind a gate that
// knows who may ask for what.
//
// It knows nothing of the agent but what its Config gives: whether it is ready, its metrics, and
// whom to tell of a panic.
package admin
