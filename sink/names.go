package sink

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/panics"
)

const (
	// knownNames is how many names that were resolved lately are asked for again. One more is kept,
	// because one of them may be the name that fails.
	knownNames = 3
	// probeTimeout is longer than a resolver waits for the first of its servers, which may be the
	// only one that is down.
	probeTimeout = 7 * time.Second
	// brokenFor is how long a resolver that answered for no name counts as broken without a new
	// question.
	brokenFor = 5 * time.Second
	// lately is how long a name that was resolved is expected to exist. mostLately is how many such
	// names are remembered.
	lately     = 24 * time.Hour
	mostLately = 4096
)

// names finds out whether a customer's DNS is broken, or our own resolver answers for nobody. It
// asks for names below those that were resolved lately. No cache can have them. "There is no such
// name" is an answer too, because a resolver that does not reach the internet gives none. If no
// other name was resolved lately, it asks for the root.
//
// Some resolvers that do not reach the internet say of every name that it does not exist: those of
// captive portals, and forwarders that have lost their servers. So if a name is gone that existed
// lately, names asks for the names of other owners. If all of them are gone too, the resolver is at
// fault.
type names struct {
	resolver *net.Resolver // nil for net.DefaultResolver

	mu     sync.Mutex
	known  []string             // resolved lately, the latest last
	lately map[string]time.Time // when names were resolved, by plainName
	// answers finds out whether the resolver answers. exist finds out whether other names exist.
	answers, exist round
}

// round is a round of questions that many attempts share. Its fields are guarded by names.mu.
type round struct {
	// works is the last result. It comes from questions that were under way from began to ended.
	works        bool
	began, ended time.Time
	// probing is closed when the current questions have ended. It is nil if there are none.
	probing chan struct{}
}

// resolved records a name that has addresses. This says nothing about the resolver, because the
// addresses may come from /etc/hosts or a cache.
func (n *names) resolved(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.known, name); i >= 0 {
		n.known = slices.Delete(n.known, i, i+1)
	} else if len(n.known) > knownNames {
		n.known = slices.Delete(n.known, 0, 1)
	}
	n.known = append(n.known, name)
	if n.lately == nil {
		n.lately = map[string]time.Time{}
	}
	plain := plainName(name)
	if _, there := n.lately[plain]; !there && len(n.lately) >= mostLately {
		for one := range n.lately {
			delete(n.lately, one)
			break
		}
	}
	n.lately[plain] = time.Now()
}

// silent reports whether the resolver has answered, since then, for no name other than failing. It
// does not blame the resolver when ctx ends first.
func (n *names) silent(ctx context.Context, since time.Time, failing string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	works, err := n.askLocked(ctx, &n.answers, since, func() []string {
		return slices.DeleteFunc(slices.Clone(n.known), func(name string) bool { return plainName(name) == plainName(failing) })
	}, n.ask)
	return err == nil && !works
}

// gone reports whether our resolver is at fault for a name that existed lately and is gone. That is
// so if no name of other owners exists since then either. It does not blame the resolver when ctx
// ends first.
func (n *names) gone(ctx context.Context, since time.Time, failing string) bool {
	failing = plainName(failing)
	n.mu.Lock()
	defer n.mu.Unlock()
	if at, known := n.lately[failing]; !known || time.Since(at) > lately {
		return false
	}
	exist, err := n.askLocked(ctx, &n.exist, since, func() []string { return n.othersLocked(failing) }, n.anyThere)
	if err == nil && exist {
		delete(n.lately, failing) // it says nothing about the resolver any more
	}
	return err == nil && !exist
}

// othersLocked returns the latest names of other owners that were resolved lately, one for each
// domain.
func (n *names) othersLocked(failing string) []string {
	latest := map[string]string{} // by domain
	for name, at := range n.lately {
		domain := domainOf(name)
		if before, ok := latest[domain]; time.Since(at) <= lately && domain != domainOf(failing) && (!ok || n.lately[before].Before(at)) {
			latest[domain] = name
		}
	}
	others := slices.Collect(maps.Values(latest))
	slices.SortFunc(others, func(a, b string) int { return n.lately[b].Compare(n.lately[a]) })
	return others[:min(len(others), knownNames)]
}

// askLocked returns the result of a round of questions, or the last result if it is from since or
// later. Many attempts share one round. It unlocks n.mu while it waits, and its error is that of ctx.
//
// A resolver that is silent makes a round as long as probeTimeout. So brokenFor counts from the end
// of the round: otherwise the result would be too old at once, and each attempt that waits would
// begin a round of its own.
func (n *names) askLocked(ctx context.Context, r *round, since time.Time, choose func() []string, ask func([]string) bool) (works bool, err error) {
	for {
		switch {
		case r.works && r.began.After(since):
			return true, nil
		case !r.works && time.Since(r.ended) < brokenFor:
			return false, nil
		case r.probing == nil:
			r.probing = make(chan struct{})
			go n.probe(r, time.Now(), choose(), ask)
		}
		probing := r.probing
		n.mu.Unlock()
		select {
		case <-probing:
		case <-ctx.Done():
			err = ctx.Err()
		}
		n.mu.Lock()
		if err != nil {
			return false, err
		}
	}
}

// probe makes a round of questions. It ends within probeTimeout, and does not end with an attempt,
// since other attempts wait for it too. After a panic nobody is blamed.
func (n *names) probe(r *round, began time.Time, chosen []string, ask func([]string) bool) {
	works := true
	_ = panics.Catch(func() error { works = ask(chosen); return nil })
	n.mu.Lock()
	defer n.mu.Unlock()
	close(r.probing)
	r.works, r.began, r.ended, r.probing = works, began, time.Now(), nil
}

// plainName returns a name in the form in which names are compared.
func plainName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// domainOf returns the last two labels of a plain name. Names of one owner share them. Below a
// registry such as co.uk, names of several owners share them too, and then count as names of one.
func domainOf(name string) string {
	labels := strings.Split(name, ".")
	return strings.Join(labels[max(0, len(labels)-2):], ".")
}

// ask reports whether the resolver answers for anything below one of these names, or for the root
// if there is none. "There is no such name" counts as an answer.
func (n *names) ask(known []string) bool {
	known = known[max(0, len(known)-knownNames):]
	var questions []func(context.Context, *net.Resolver) error
	if len(known) == 0 {
		questions = append(questions, func(ctx context.Context, r *net.Resolver) error {
			_, err := r.LookupNS(ctx, ".")
			return err
		})
	}
	for _, name := range known {
		questions = append(questions, addressesOf(strings.ToLower(rand.Text()[:12])+"."+name))
	}
	return n.anyOf(questions, func(err error) bool { return err == nil || isNotFound(err) })
}

// anyThere reports whether one of these names exists. If a name cannot be asked for, it may exist.
// Without any name, nothing is known.
func (n *names) anyThere(known []string) bool {
	var questions []func(context.Context, *net.Resolver) error
	for _, name := range known {
		questions = append(questions, addressesOf(name+"."))
	}
	return len(questions) == 0 || n.anyOf(questions, func(err error) bool { return !isNotFound(err) })
}

func addressesOf(name string) func(context.Context, *net.Resolver) error {
	return func(ctx context.Context, r *net.Resolver) error {
		_, err := r.LookupNetIP(ctx, "ip", name)
		return err
	}
}

func isNotFound(err error) bool {
	dns, isDNS := errors.AsType[*net.DNSError](err)
	return isDNS && dns.IsNotFound
}

// anyOf asks all questions at once and reports whether one has the wanted answer. It has a time
// limit of its own, because the attempt's time is over if DNS is silent.
func (n *names) anyOf(questions []func(context.Context, *net.Resolver) error, wanted func(error) bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	resolver := n.resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	answers := make(chan error, len(questions)) // each question sends once
	for _, question := range questions {
		go func() { answers <- panics.Catch(func() error { return question(ctx, resolver) }) }()
	}
	for range questions {
		if wanted(<-answers) {
			return true
		}
	}
	return false
}
