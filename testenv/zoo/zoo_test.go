package zoo

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"testing"
	"time"
)

func TestOpen_HasAnimalsOfDifferentNamesAndPlaces(t *testing.T) {
	z := Start(t)
	names, places := map[string]bool{}, map[string]bool{}
	name := regexp.MustCompile(`^[a-z0-9.-]+$`)
	for _, a := range z.Animals {
		u, err := url.Parse(a.URL)
		if err != nil || u.Path != "/"+a.Name {
			t.Errorf("%s lives at %s: %v", a.Name, a.URL, err)
		}
		if !name.MatchString(a.Name) || a.Does == "" || names[a.Name] || places[u.Host] {
			t.Errorf("%+v", a)
		}
		names[a.Name], places[u.Host] = true, true
	}
	if len(z.Animals) < 40 {
		t.Errorf("%d animals", len(z.Animals))
	}
}

func TestOpen_TheFirstAnimalIsTame(t *testing.T) {
	z := Start(t)
	response, err := http.Post(z.Animals[0].URL, "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Error(response.Status)
	}
}

func TestDNS_AnswersLongAndShort(t *testing.T) {
	z := Start(t)
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, z.DNS.String())
	}}
	for host, want := range map[string]int{"name-private": 1, "name-mixed": 2, "name-thousand": 1000, "name-mapped": 1, "name-empty": 0, "name-unknown": 0, "nobody": 0} {
		addresses, err := resolver.LookupNetIP(t.Context(), "ip", host+".zoo.example.")
		if len(addresses) != want || (err == nil) != (want > 0) {
			t.Errorf("%s has %d addresses, want %d: %v", host, len(addresses), want, err)
		}
	}
	var answers []string
	for range 3 {
		addresses, err := resolver.LookupNetIP(t.Context(), "ip4", "name-rebinding.zoo.example.")
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, addresses[0].String())
	}
	if want := []string{"127.0.0.1", "10.0.0.7", "10.0.0.7"}; !slices.Equal(answers, want) {
		t.Errorf("the name that rebinds leads to %v, want %v", answers, want)
	}
}

func TestFull_TakesNoConnection(t *testing.T) {
	z := Start(t)
	i := slices.IndexFunc(z.Animals, func(a Animal) bool { return a.Name == "full" })
	u, err := url.Parse(z.Animals[i].URL)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", u.Host, 300*time.Millisecond)
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
		t.Errorf("%v, want a timeout", err)
	}
	if conn != nil {
		conn.Close()
	}
}
