// Package backoff has what a program needs when something goes wrong for a while. It waits longer
// and longer between tries (New, Retry), and logs once when a trouble begins, when it changes, and
// when it is over (Trouble).
package backoff
