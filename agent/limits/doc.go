// Package limits bounds what people and programs may ask of an agent beside its deliveries: requests
// by caller and kind, requests under way, streams, samples, and the time of all requests together.
// All listeners of a process share one Limits, since they share one connection pool and the
// processors that the deliveries need.
package limits
