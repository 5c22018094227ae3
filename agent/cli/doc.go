// Package cli is the command line of the agent: it reads the configuration, opens the database,
// does what a command says, and prints the answer for a person or as JSON.
//
// Main is the entry. A command is a file: run, init, config, check, migrate, adopt, uninstall,
// status, endpoints, deliveries, listen. What a command does with the database, package outbox
// does; what it does as an agent, package agent does. So this package holds words, flags and
// tables, and nothing that another way in would need again.
//
// What commands have in common: given.go refuses what they cannot work with, suggest.go names what
// was meant, completion.go offers ids to the shell, listing.go walks pages, watch.go and follow.go
// go on until they are interrupted, times.go reads points in time. A printer (output.go, table.go,
// width.go, color.go) fits the answer to the terminal, or writes it whole for a program.
//
// A command ends with status 0, with 1 when it failed, found something wrong or could not write its
// answer (answer.go), and with 2 for a wrong command line or configuration. Errors are one sentence
// each, on standard error.
package cli
