package console

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quintago/webhook-agent/outbox"
)

// languages are those that the pages have, the first one by default.
var languages = []string{"en", "pt"}

// themes are those that a visitor may choose beside the browser's own.
var themes = []string{"light", "dark"}

// Cookies of a visitor's preferences.
const (
	languageCookie = "wh-lang"
	themeCookie    = "wh-theme"
)

// setPreferences keeps what a link or the app has chosen by the parameters lang and theme, and leads to
// the page without them. It reports whether there were any.
func setPreferences(w http.ResponseWriter, r *http.Request) bool {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // the page says so
		return false
	}
	chosen := false
	for _, p := range []struct {
		parameter, cookie string
		known             []string
	}{{"lang", languageCookie, languages}, {"theme", themeCookie, append([]string{"auto"}, themes...)}} {
		if !query.Has(p.parameter) {
			continue
		}
		chosen = true
		value := query.Get(p.parameter)
		if p.parameter == "lang" {
			value, _, _ = strings.Cut(strings.ToLower(value), "-")
		}
		if slices.Contains(p.known, value) {
			// A page within one of another site keeps only a cookie for this pair of sites.
			http.SetCookie(w, &http.Cookie{Name: p.cookie, Value: value, Path: Prefix, MaxAge: int((365 * 24 * time.Hour).Seconds()),
				Secure: true, HttpOnly: true, SameSite: http.SameSiteNoneMode, Partitioned: true})
		}
	}
	if !chosen {
		return false
	}
	http.Redirect(w, r, here(r), http.StatusSeeOther)
	return true
}

// languageOf returns the language of a visitor: what he has chosen, or the first of those his browser
// asks for that the pages have.
func languageOf(r *http.Request) string {
	if c, err := r.Cookie(languageCookie); err == nil && slices.Contains(languages, c.Value) {
		return c.Value
	}
	for _, part := range strings.Split(r.Header.Get("Accept-Language"), ",") {
		tag, _, _ := strings.Cut(part, ";")
		base, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		if slices.Contains(languages, base) {
			return base
		}
	}
	return languages[0]
}

// themeOf returns the theme that a visitor has chosen, "" for that of the browser.
func themeOf(r *http.Request) string {
	if c, err := r.Cookie(themeCookie); err == nil && slices.Contains(themes, c.Value) {
		return c.Value
	}
	return ""
}

// texts are the texts of a language.
type texts struct {
	language string
	of       map[string]string // by the English text; nil for English
	months   [12]string
}

// loadTexts returns the texts of a language.
func loadTexts(language string) (*texts, error) {
	t := &texts{language: language, months: [12]string{"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"}}
	if language == languages[0] {
		return t, nil
	}
	text, err := files.ReadFile("locales/" + language + ".json")
	if err != nil {
		return nil, err
	}
	t.months = [12]string{"jan", "fev", "mar", "abr", "mai", "jun", "jul", "ago", "set", "out", "nov", "dez"}
	return t, json.Unmarshal(text, &t.of)
}

// say returns a text in the language, with its arguments in place of its verbs. A text that is not
// there, such as an error's, stays English.
func (t *texts) say(text string, args ...any) string {
	if translated, ok := t.of[text]; ok {
		text = translated
	} else if len(args) == 0 && t.of != nil {
		text = t.foreign(text)
	}
	if len(args) == 0 {
		return text
	}
	return fmt.Sprintf(text, args...)
}

// count returns the text for one thing, or that for another number of them.
func (t *texts) count(n any, one, many string) string {
	number := toInt(n)
	if number == 1 {
		return t.say(one)
	}
	return t.say(many, t.number(number))
}

// number returns a number with a thin space between its thousands.
func (t *texts) number(n any) string {
	digits := fmt.Sprint(toInt(n))
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "\u202f" + digits[i:]
	}
	return sign + digits
}

func toInt(n any) int64 {
	switch n := n.(type) {
	case int:
		return int64(n)
	case int64:
		return n
	case *int64:
		if n != nil {
			return *n
		}
	case *int:
		if n != nil {
			return int64(*n)
		}
	}
	return 0
}

// toTime returns the time that a template gives, and whether there is one.
func toTime(at any) (time.Time, bool) {
	switch at := at.(type) {
	case time.Time:
		return at.UTC(), !at.IsZero()
	case *time.Time:
		if at != nil && !at.IsZero() {
			return at.UTC(), true
		}
	}
	return time.Time{}, false
}

// at returns a time of UTC to the second. A script shows it in the visitor's own zone instead, in the
// same form.
func (t *texts) at(at any) template.HTML {
	when, ok := toTime(at)
	if !ok {
		return "–"
	}
	text := fmt.Sprintf("%d %s %d, %s", when.Day(), t.months[when.Month()-1], when.Year(), when.Format("15:04:05"))
	return template.HTML(`<time data-at datetime="` + when.Format(time.RFC3339) + `">` + text + `</time>`) //nolint:gosec // of numbers and names of months
}

// short is at without the year, for lists.
func (t *texts) short(at any) template.HTML {
	when, ok := toTime(at)
	if !ok {
		return "–"
	}
	text := fmt.Sprintf("%d %s, %s", when.Day(), t.months[when.Month()-1], when.Format("15:04:05"))
	return template.HTML(`<time data-short datetime="` + when.Format(time.RFC3339) + `">` + text + `</time>`) //nolint:gosec // of numbers and names of months
}

// ago returns how long ago a time is, or how far ahead.
func (t *texts) ago(at any) template.HTML {
	when, ok := toTime(at)
	if !ok {
		return "–"
	}
	text := t.distance(time.Since(when))
	return template.HTML(`<time data-ago datetime="` + when.Format(time.RFC3339) + `" title="` + when.Format("2006-01-02 15:04:05") + ` UTC">` + text + `</time>`) //nolint:gosec // of numbers and texts of ours
}

// distance says how long ago something was.
func (t *texts) distance(d time.Duration) string {
	size, ahead := d.Abs(), d < 0
	var n int
	var unit string
	switch {
	case size < time.Minute:
		n, unit = int(size.Seconds()), "s"
	case size < time.Hour:
		n, unit = int(size.Minutes()), "min"
	case size < 48*time.Hour:
		n, unit = int(size.Hours()), "h"
	default:
		n, unit = int(size.Hours()/24), "d"
	}
	amount := fmt.Sprintf("%d\u202f%s", n, unit)
	if ahead {
		return t.say("in %s", amount)
	}
	return t.say("%s ago", amount)
}

// bytes returns a number of bytes for people.
func (t *texts) bytes(n any) string {
	size := float64(toInt(n))
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if size < 1024 {
			if unit == "B" || size >= 100 {
				return fmt.Sprintf("%.0f\u202f%s", size, unit)
			}
			return t.decimal(size) + "\u202f" + unit
		}
		size /= 1024
	}
	return t.decimal(size) + "\u202fTiB"
}

// milliseconds returns a latency for people.
func (t *texts) milliseconds(n *int) string {
	switch {
	case n == nil:
		return "–"
	case *n == 0:
		return "<\u202f1\u202fms"
	case *n < 1000:
		return fmt.Sprintf("%d\u202fms", *n)
	default:
		return t.decimal(float64(*n)/1000) + "\u202fs"
	}
}

// sentence returns a text of ours as a sentence.
func (t *texts) sentence(text string) string {
	text = t.say(text)
	first, size := utf8.DecodeRuneInString(text)
	if size == 0 {
		return ""
	}
	text = string(unicode.ToUpper(first)) + text[size:]
	if strings.HasSuffix(text, ".") || strings.HasSuffix(text, "?") {
		return text
	}
	return text + "."
}

// The keys of the messages that a form was not done, or not all of it.
const (
	undone = "undone"
	unsent = "enabled-unsent"
)

// doneTexts are the messages about what was done, by their keys.
var doneTexts = map[string]string{
	"changed": "The endpoint was changed.", "enabled": "The endpoint is enabled.", "enabled-replay": "The endpoint is enabled, and what it missed is on its way.",
	"disabled": "The endpoint is disabled.", "removed": "The endpoint was removed.", "replay-started": "The replay has begun.", "replay-pause": "The replay is paused.",
	"replay-resume": "The replay goes on.", "replay-cancel": "The replay is canceled.", "replay-pace": "The pace was changed.",
	unsent: "The endpoint is enabled. What it missed is not on its way: start a replay of it.",
	undone: "Your session had ended, so nothing was changed. Please do it again.",
}

// prefer returns the path of a page with a preference.
func prefer(here, name, value string) template.URL {
	mark := "?"
	if strings.Contains(here, "?") {
		mark = "&"
	}
	return template.URL(here + mark + name + "=" + value) //nolint:gosec // here is a path that was encoded
}

// functions are what the templates call.
func (t *texts) functions() template.FuncMap {
	return template.FuncMap{
		// texts
		"t": t.say, "count": t.count, "sentence": t.sentence, "word": t.word, "why": t.why, "doneText": func(key string) string { return doneTexts[key] },
		"countText": func(f replayForm) string { return countText(t, f) },
		// numbers and times
		"number": t.number, "upTo": t.upTo, "rate": t.rate, "bytes": t.bytes, "ms": t.milliseconds, "at": t.at, "short": t.short, "ago": t.ago,
		"less": func(a, b int) int { return a - b },
		// what others have written
		"clean": clean, "cut": cut, "brief": brief, "pretty": pretty, "result": func(d outbox.DeliveryInfo) string { return resultOf(t, d) },
		"hasExample": func(text json.RawMessage) bool { return len(text) > 0 && string(text) != "null" },
		// charts
		"spark": t.spark, "bars": t.bars, "lines": t.lines, "rates": t.rates,
		// paths
		"asset": assetURL, "path": joinPath, "prefer": prefer,
		"raw": func(query string) template.URL { return template.URL(query) }, //nolint:gosec // it was encoded
		// templates
		"dict": dict, "inList": func(word, list string) bool { return slices.Contains(strings.Fields(list), word) },
		"isStatus": func(verdict string) bool { return slices.Contains(statuses, outbox.Status(verdict)) },
	}
}
