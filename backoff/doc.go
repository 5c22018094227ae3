// Package backoff is how a program lives with what goes wrong for a while: it tries again, later and later, and says in its
// log once what the trouble is, when it becomes another, and when it is over.
package backoff
