package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

var hexKeys = []Text{New(strings.Repeat("a1", KeyBytes)), New(strings.Repeat("B2", KeyBytes)), New(strings.Repeat("c3", KeyBytes))}

func newRing(t testing.TB, keys ...Text) Keyring {
	t.Helper()
	ring, err := NewKeyring(keys)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestKeyring_OpensWhatItSealedForTheSameOwnerOnly(t *testing.T) {
	ring := newRing(t, hexKeys[0])
	s := New("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	sealed := ring.Seal("ep_1", s)
	if strings.Contains(sealed.Reveal(), "MfKQ") || !strings.HasPrefix(sealed.Reveal(), SealedPrefix) {
		t.Errorf("sealed as %s", sealed.Reveal())
	}
	if got, err := ring.Open("ep_1", sealed); err != nil || !got.Equal(s) {
		t.Errorf("opened as %q, %v", got.Reveal(), err)
	}
	if got, err := ring.Open("ep_2", sealed); err == nil {
		t.Errorf("another owner opens it as %q", got.Reveal())
	}
	if ring.Seal("ep_1", s).Equal(sealed) {
		t.Error("sealed twice it is the same: the nonce is not random")
	}
}

func TestKeyring_RefusesWhatWasChanged(t *testing.T) {
	ring := newRing(t, hexKeys[0])
	sealed := ring.Seal("ep_1", New("a secret")).Reveal()
	for i := len(SealedPrefix) + 9; i < len(sealed); i++ {
		other := byte('A')
		if sealed[i] == 'A' {
			other = 'B'
		}
		for _, changed := range []string{sealed[:i] + string(other) + sealed[i+1:], sealed[:i]} {
			if got, err := ring.Open("ep_1", New(changed)); err == nil {
				t.Errorf("%s opens as %q", changed, got.Reveal())
			}
		}
	}
}

func TestKeyring_RotatesKeys(t *testing.T) {
	old, both, later := newRing(t, hexKeys[1]), newRing(t, hexKeys[0], hexKeys[1]), newRing(t, hexKeys[0])
	sealed := old.Seal("ep_1", New("a secret"))
	if got, err := both.Open("ep_1", sealed); err != nil || got.Reveal() != "a secret" {
		t.Fatalf("%q, %v", got.Reveal(), err)
	}
	if !both.Outdated("ep_1", sealed) || !both.Outdated("ep_1", New("plain")) {
		t.Error("what the second key has sealed, or none, is not to be sealed anew")
	}
	again := both.Seal("ep_1", New("a secret"))
	if got, err := later.Open("ep_1", again); err != nil || got.Reveal() != "a secret" {
		t.Errorf("%q, %v", got.Reveal(), err)
	}
	if both.Outdated("ep_1", again) || both.Outdated("ep_1", Text{}) {
		t.Error("what the first key has sealed, or nothing, is to be sealed anew")
	}
	if _, err := later.Open("ep_1", sealed); !errors.Is(err, ErrNoKey) {
		t.Errorf("without its key: %v", err)
	}
	if later.Outdated("ep_1", sealed) || both.Outdated("ep_2", sealed) {
		t.Error("what cannot be opened is to be sealed anew")
	}
	if !both.Has(both.keys[1].id) || later.Has(both.keys[1].id) || both.IsFirst(both.keys[1].id) || !both.IsFirst(both.keys[0].id) {
		t.Error("the keys are not told apart")
	}
}

func TestKeyring_WithoutKeysLeavesEverythingAsItIs(t *testing.T) {
	var none Keyring
	s := New("plain")
	if got := none.Seal("ep_1", s); !got.Equal(s) {
		t.Errorf("sealed as %q", got.Reveal())
	}
	if got, err := none.Open("ep_1", s); err != nil || !got.Equal(s) {
		t.Errorf("opened as %q, %v", got.Reveal(), err)
	}
	if none.Outdated("ep_1", s) {
		t.Error("it is to be sealed")
	}
	sealed := newRing(t, hexKeys[0]).Seal("ep_1", s)
	if _, err := none.Open("ep_1", sealed); !errors.Is(err, ErrNoKey) {
		t.Errorf("a sealed secret: %v", err)
	}
	if got := newRing(t, hexKeys[0]).Seal("ep_1", Text{}); !got.IsZero() {
		t.Errorf("no secret is sealed as %q", got.Reveal())
	}
}

func TestNewKeyring_SaysWhichKeyIsWrongAndShowsNone(t *testing.T) {
	_, err := NewKeyring([]Text{hexKeys[0], New("sentinel"), New(strings.Repeat("zz", KeyBytes)), hexKeys[0], {}})
	for _, want := range []string{"key 2 must have 64", "key 3 must have 64", "key 4 is there twice", "key 5 must have 64", "openssl rand -hex 32"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "sentinel") {
		t.Errorf("a key is shown: %v", err)
	}
}

func TestKeyring_ShowsNoKey(t *testing.T) {
	ring := newRing(t, hexKeys...)
	encoded, err := json.Marshal(ring) //nolint:staticcheck // that nothing comes out is what is shown
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Sprint([]byte(strings.Repeat("\xa1", 8))[:4])
	texts := []string{string(encoded)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		texts = append(texts, fmt.Sprintf(verb, ring))
	}
	for _, text := range texts {
		for _, leak := range []string{"a1a1a1", "A1A1", strings.Trim(raw, "[]")} {
			if strings.Contains(text, leak) {
				t.Errorf("a key is shown: %s", text)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	ring := newRing(f, hexKeys...)
	f.Add("ep_1", ring.Seal("ep_1", New("a secret")).Reveal())
	f.Add("ep_1", "sealed:v1:")
	f.Add("", "sealed:v1:00000000:AAAA")
	f.Add("ep_1", "plain")
	f.Fuzz(func(t *testing.T, owner, stored string) {
		s, err := ring.Open(owner, New(stored))
		switch {
		case err == nil && !strings.HasPrefix(stored, SealedPrefix) && s.Reveal() != stored:
			t.Errorf("a secret that is not sealed opens as another one")
		case err != nil && len(stored) > len(SealedPrefix)+20 && strings.Contains(err.Error(), stored[len(SealedPrefix):]):
			t.Errorf("the error shows what is stored: %v", err)
		}
	})
}
