// Package console has the pages of the agent: for operators, and for a venue's users within the app's
// Settings page.
package console
