// Package agenttest has what the tests of whole agents share: a configuration for a test's
// database, an agent in the test's process, and what an app does by SQL.
package agenttest
