//go:build browser

package console

import (
	"bytes"
	"flag"
	"image"
	"image/color"
	"image/png"
	"os"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/browser"
)

var update = flag.Bool("update", false, "take the pictures in docs/ anew")

// mostPicture is how many bytes a picture may have: the pages with them are read on telephones too.
const mostPicture = 150 << 10

// seedPicture gives the pages what a console of some months shows.
func (s *site) seedPicture() {
	s.Helper()
	s.seedVenue("quinta-das-flores")
	s.seedVenue("palacio-do-mar")
	s.seedStates("quinta-das-flores")
	s.env.Exec(s, `select pg_create_logical_replication_slot($1, 'pgoutput')`, s.env.Slot)
	s.env.Exec(s, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
		select $1, pg_current_wal_lsn(), 7, 'webhooks-1/4127', system_identifier::text, 1, current_database() from pg_control_system()`, s.env.Slot)

	// An endpoint with many events a day, whose server is down now and then, and at the end.
	s.env.Exec(s, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_code, last_class, last_error, last_latency_ms, created, finished)
		select 'evt_day_' || n, 'ep_quinta-das-flores_2', 'quinta-das-flores', 'lead.created', status, case status when 'failed' then 6 else 1 end, case status when 'failed' then 503 else 200 end,
			case status when 'failed' then 'status' end, case status when 'failed' then 'the server answered 503 Service Unavailable' end,
			(60 + 30 * sin(n / 40.0) + 25 * random() + case when n % 19 = 0 then 180 * random() else 0 end)::int, at, at + interval '1 second'
		from generate_series(1, 1400) n, lateral (select now() - n * interval '1 minute' as at, case when n < 20 or n between 460 and 500 and n % 3 > 0 or n % 173 = 0 then 'failed' else 'succeeded' end as status) x
		where 20 + 15 * sin(n / 200.0) > 45 * random()`)

	// The last hour, with a customer's server that was down for a while.
	clock := &clock{now: time.Now().Add(-time.Hour)}
	s.feed.SetClock(clock.Now)
	for minute := range 61 {
		n := 260 + 40*((minute*7)%5) + 3*minute
		failed, retried := minute%9/4, 2
		if minute > 22 && minute < 31 {
			retried = 60
		}
		var records []*outbox.Record
		add := func(n int, r outbox.Record) {
			r.Delivery = &outbox.Delivery{}
			for range n {
				records = append(records, &r)
			}
		}
		add(n, outbox.Record{Status: outbox.Succeeded})
		add(failed, outbox.Record{Status: outbox.Failed})
		add(retried, outbox.Record{Status: outbox.Pending, Attempt: &outbox.Attempt{}})
		add(minute%7/5*12, outbox.Record{Status: outbox.Missed})
		s.feed.Recorded(records)
		clock.advance(time.Minute)
	}
}

// The README and the page about the Settings page show these pictures.
func TestBrowser_Pictures(t *testing.T) {
	a := newApp(t, "webhooks.quintago.test", "app.quintago.test", true)
	a.seedPicture()
	operator := a.tab()
	operator.Viewport(1280, 900)
	operator.SetScheme("light")
	take := func(name string, p *browser.Page, width, height int64, scheme string) {
		t.Helper()
		picture := p.Screenshot(width, height, scheme)
		small := shrink(t, picture)
		if len(small) > mostPicture {
			t.Errorf("%s has %d bytes, want at most %d", name, len(small), mostPicture)
		}
		path := "../../docs/" + name
		if *update {
			if err := os.WriteFile(path, small, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		kept, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v; make screenshots takes the pictures", err)
		}
		if config, err := png.DecodeConfig(bytes.NewReader(kept)); err != nil || int64(config.Width) != width || int64(config.Height) != height {
			t.Errorf("%s is %d by %d, %v; make screenshots takes it anew", name, config.Width, config.Height, err)
		}
	}
	open := func(p *browser.Page, path, text string) {
		t.Helper()
		p.Open(a.server.URL + Prefix + path)
		p.WaitFor("text=" + text)
	}

	open(operator, "/", "The last hour")
	take("console-overview.png", operator, 1280, 900, "light")

	open(operator, "/endpoints/ep_quinta-das-flores_2?window=24h", "Latency")
	take("console-endpoint.png", operator, 1280, 900, "light")

	venue := a.venueTab("quinta-das-flores")
	venue.Viewport(1280, 900)
	venue.SetScheme("dark")
	venue.Open(a.server.URL + Prefix + "/v/quinta-das-flores/deliveries/" + testenv.QueryOne[string](t, a.env,
		`select event_id || '/' || endpoint_id from webhooks.deliveries where status = 'failed' and endpoint_id like '%flores_1' and created < now() - interval '1 hour' order by created desc limit 1`))
	venue.WaitFor("text=What happened")
	take("console-delivery.png", venue, 1280, 900, "dark")

	app := browser.New(t)
	app.Viewport(1280, 900)
	app.Open(a.settings("quinta-das-flores"))
	app.Frame("iframe").WaitFor("text=crm.quinta-das-flores.example")
	take("console-settings.png", app, 1280, 900, "light")
}

// shrink returns a picture with its 256 most frequent colours. It takes a third of the bytes and looks
// the same: pages have few colours, and the many others are edges of letters.
func shrink(t *testing.T, picture []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[color.RGBA]int{}
	bounds := full.Bounds()
	at := func(x, y int) color.RGBA {
		r, g, b, _ := full.At(x, y).RGBA()
		return color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255}
	}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[at(x, y)]++
		}
	}
	var palette color.Palette
	for len(palette) < 256 && len(counts) > 0 {
		var best color.RGBA
		for c, n := range counts {
			if n > counts[best] || n == counts[best] && less(c, best) {
				best = c
			}
		}
		palette = append(palette, best)
		delete(counts, best)
	}
	small := image.NewPaletted(bounds, palette)
	index := map[color.RGBA]uint8{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c := at(x, y)
			i, known := index[c]
			if !known {
				i = uint8(palette.Index(c)) //nolint:gosec // a palette has at most 256 colours
				index[c] = i
			}
			small.SetColorIndex(x, y, i)
		}
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, small); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func less(a, b color.RGBA) bool {
	return int(a.R)<<16|int(a.G)<<8|int(a.B) < int(b.R)<<16|int(b.G)<<8|int(b.B)
}
