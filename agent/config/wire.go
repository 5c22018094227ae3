package config

import (
	"context"
	"net"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// OutboxConfig returns the part of the configuration that package outbox needs.
func (c *Config) OutboxConfig() outbox.Config {
	columns := c.Outbox.Columns
	return outbox.Config{
		URL:         c.Database.URL,
		Table:       c.Outbox.Table,
		Columns:     outbox.Columns{ID: columns.ID, Type: columns.Type, Venue: columns.Venue, Data: columns.Data, Created: columns.Created, Traceparent: columns.Traceparent},
		Types:       c.Outbox.Types,
		TimeZone:    c.Outbox.TimeZone,
		Publication: c.Outbox.Publication,
		Slot:        c.Outbox.Slot,
		Retention:   c.Outbox.Retention,
		MaxBody:     int(c.Delivery.MaxBody),
		Notices:     c.Notices.Enabled,
		Keys:        c.Keyring(),
	}
}

// Keyring returns the keyring of a configuration that Load has checked.
func (c *Config) Keyring() secret.Keyring {
	keys, _ := secret.NewKeyring(c.Security.Keys)
	return keys
}

// ConsoleKeys returns the keys of venues' tokens of a configuration that Load has checked.
func (c *Config) ConsoleKeys() access.Keys {
	keys, _ := access.NewKeys(c.Console.Keys)
	return keys
}

// Managed returns the endpoints of the file.
func (c *Config) Managed() []outbox.ManagedEndpoint {
	managed := make([]outbox.ManagedEndpoint, len(c.Endpoints))
	for i, e := range c.Endpoints {
		managed[i] = outbox.ManagedEndpoint{Venue: e.Venue, URL: e.URL, Events: e.Events, Secret: e.Secret, Description: e.Description}
	}
	return managed
}

// NewWebhook returns the Webhook that delivers, with at most idle idle connections. It refuses the
// addresses of this host and of the database. For that it resolves the database's name, and returns
// an error if it cannot: the address guard would have a hole. The names of endpoints are looked up
// with resolver; nil means net.DefaultResolver. The caller closes the Webhook.
func (c *Config) NewWebhook(ctx context.Context, version string, idle int, resolver *net.Resolver) (*sink.Webhook, error) {
	deny, err := sink.HostAddrs()
	if err != nil {
		return nil, err
	}
	database, err := c.OutboxConfig().ServerAddrs(ctx, net.DefaultResolver.LookupNetIP)
	if err != nil {
		return nil, err
	}
	return sink.NewWebhook(sink.WebhookConfig{
		Version:        version,
		Timeout:        c.Delivery.Timeout,
		AllowHTTP:      c.Network.AllowHTTP,
		AllowNetworks:  c.Network.AllowNetworks,
		DenyAddrs:      append(deny, database...),
		MaxIdlePerHost: min(c.Delivery.Concurrency, idle),
		MaxIdle:        idle,
		Resolver:       resolver,
	})
}

// OpenTarget returns the target of an endpoint whose secrets may be sealed. With an error, nothing
// can be sent to the target. A former secret that cannot be opened is left out, so it signs
// nothing.
func OpenTarget(webhook *sink.Webhook, keys secret.Keyring, e *outbox.Endpoint) (*sink.Target, error) {
	current, err := keys.Open(e.ID, e.Secret)
	var former []sink.Former
	for _, f := range e.Former() {
		// The command check names the missing key.
		if opened, err := keys.Open(e.ID, f.Secret); err == nil {
			former = append(former, sink.Former{Secret: opened, Until: f.Until})
		}
	}
	target := webhook.Target(e.URL.Reveal(), current, former...)
	if err == nil {
		err = target.Err()
	}
	return target, err
}
