// Package agenttest is what tests of whole agents have in common: a configuration for a test's database, an agent in the test's
// process, and what an app does by SQL.
package agenttest
