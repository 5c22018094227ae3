package main

import (
	"fmt"
	"strings"
)

// lead is a couple that inquires at a venue. Its fields are the data that the app would read from
// its tables.
type lead struct {
	venue      *venue
	next       int // index of the next step in story
	id         string
	name       string
	email      string
	phone      string
	eventDate  string
	guests     int
	proposalID string
	paymentID  string
	total      string // EUR
	deposit    string // EUR, 30 percent
}

// The payloads have the order of QuintaGo's documentation.
type (
	leadPayload struct {
		Lead leadData `json:"lead"`
	}
	leadData struct {
		ID            string `json:"id"`
		Name          string `json:"name"`
		Email         string `json:"email"`
		Phone         string `json:"phone"`
		Stage         string `json:"stage"`
		PreviousStage string `json:"previousStage,omitempty"`
		EventDate     string `json:"eventDate"`
		Guests        int    `json:"guests"`
	}
	proposalPayload struct {
		Proposal proposalData `json:"proposal"`
	}
	proposalData struct {
		ID       string `json:"id"`
		LeadID   string `json:"leadId"`
		Total    string `json:"total"`
		Currency string `json:"currency"`
		Status   string `json:"status"`
	}
	paymentPayload struct {
		Payment paymentData `json:"payment"`
	}
	paymentData struct {
		ID         string `json:"id"`
		ProposalID string `json:"proposalId"`
		Amount     string `json:"amount"`
		Currency   string `json:"currency"`
		Method     string `json:"method"`
	}
)

// step is one business change of a lead, with the event that reports it.
type step struct {
	eventType string
	play      func(l *lead) (change string, args []any, payload any)
}

// story is the list of what happens to each lead, in order.
var story = []step{
	{"lead.created", func(l *lead) (string, []any, any) {
		return "insert into crm.leads (id, venue, name, email, phone, stage, event_date, guests) values ($1, $2, $3, $4, $5, 'new', $6::text::date, $7)",
			[]any{l.id, l.venue.id, l.name, l.email, l.phone, l.eventDate, l.guests},
			l.payload("new", "")
	}},
	{"lead.stage_changed", func(l *lead) (string, []any, any) {
		return "update crm.leads set stage = 'visit_booked' where id = $1", []any{l.id}, l.payload("visit_booked", "new")
	}},
	{"proposal.sent", func(l *lead) (string, []any, any) {
		return "insert into crm.proposals (id, lead_id, total, status) values ($1, $2, $3::text::numeric, 'sent')",
			[]any{l.proposalID, l.id, l.total}, l.proposal("sent")
	}},
	{"proposal.viewed", func(l *lead) (string, []any, any) {
		return "update crm.proposals set status = 'viewed' where id = $1", []any{l.proposalID}, l.proposal("viewed")
	}},
	{"proposal.signed", func(l *lead) (string, []any, any) {
		return "update crm.proposals set status = 'signed' where id = $1", []any{l.proposalID}, l.proposal("signed")
	}},
	{"payment.received", func(l *lead) (string, []any, any) {
		return "insert into crm.payments (id, proposal_id, amount, method) values ($1, $2, $3::text::numeric, 'bank_transfer')",
			[]any{l.paymentID, l.proposalID, l.deposit},
			paymentPayload{paymentData{l.paymentID, l.proposalID, l.deposit, "EUR", "bank_transfer"}}
	}},
}

func (l *lead) payload(stage, previous string) leadPayload {
	return leadPayload{leadData{l.id, l.name, l.email, l.phone, stage, previous, l.eventDate, l.guests}}
}

func (l *lead) proposal(status string) proposalPayload {
	return proposalPayload{proposalData{l.proposalID, l.id, l.total, "EUR", status}}
}

var (
	firstNames  = []string{"Inês", "Tomás", "Leonor", "Duarte", "Matilde", "Afonso", "Beatriz", "Gonçalo", "Carolina", "Martim", "Conceição", "Simão"}
	familyNames = []string{"Carvalho", "Figueiredo", "Magalhães", "Simões", "Teixeira", "Brandão", "Azevedo", "Falcão", "Lourenço"}
)

// newLead invents a couple.
func (a *app) newLead(v *venue) *lead {
	a.couples++
	one, other := firstNames[a.random.IntN(len(firstNames))], firstNames[a.random.IntN(len(firstNames))]
	family := familyNames[a.random.IntN(len(familyNames))]
	guests := 60 + 10*a.random.IntN(16)
	total := 95 * guests
	return &lead{
		venue:      v,
		id:         newID("lead"),
		name:       fmt.Sprintf("%s & %s %s", one, other, family),
		email:      fmt.Sprintf("%s.%d@example.com", strings.ToLower(family[:2]), a.couples),
		phone:      fmt.Sprintf("+351910%06d", a.couples),
		eventDate:  fmt.Sprintf("2027-%02d-%02d", 5+a.random.IntN(5), 1+a.random.IntN(28)),
		guests:     guests,
		proposalID: newID("prop"),
		paymentID:  newID("pay"),
		total:      fmt.Sprintf("%d.00", total),
		deposit:    fmt.Sprintf("%.2f", float64(total)*0.3),
	}
}
