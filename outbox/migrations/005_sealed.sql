-- contraction: binaries of schema 5 or newer work with it
-- locks: webhooks.endpoints (share update exclusive)
-- Secrets may be sealed. An agent that knows nothing of it would sign with the sealed text, so it must not lead any more: it refuses a
-- schema that is newer than itself.
comment on column webhooks.endpoints.secret is
    'As the customer has it, or sealed:v1:... by an agent with security.keys, which also seals what is written as it is.';
comment on column webhooks.endpoints.previous_secret is
    'Also signs until previous_secret_until, while receivers change over. Stored like secret.';
