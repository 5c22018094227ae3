package outbox

import (
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

func TestConnConfig_NeverIgnoresTheHostOfAURL(t *testing.T) {
	for _, url := range []string{
		"jdbc:postgresql://db.example.com/app?user=u&password=sentinel", "postgresql+asyncpg://u:sentinel@db.example.com/app?ssl=true",
		"postgresql+psycopg2://u:sentinel@db.example.com/app?a=b", "postgres+ssl://u:sentinel@db.example.com/app?a=b",
		"u:sentinel@db.example.com/app?sslmode=disable", "hostaddr=10.0.0.1 password=sentinel", "Host=db.example.com;Password=sentinel",
		"server=db.example.com password=sentinel", "postgres://u:sentinel@db.example.com/app?ssl=require",
		"  postgres://u:sentinel@db.example.com/app\n", `"postgres://u:sentinel@db.example.com/app"`, "'host=db.example.com password=sentinel'",
		"postgres://u:sentinel@db.example.com/app?schema=x&pgbouncer=true&pool_max_conns=3&gssencmode=disable&keepalives_count=2",
		"postgres://u:sentinel@db.example.com/app?fallback_application_name=x&load_balance_hosts=random&replication=database",
	} {
		cc, err := Config{URL: secret.New(url)}.connConfig()
		if err != nil {
			if strings.Contains(err.Error(), "sentinel") {
				t.Errorf("%q shows the password: %v", url, err)
			}
			continue
		}
		if cc.Host != "db.example.com" {
			t.Errorf("%q connects to %q", url, cc.Host)
		}
		for name := range cc.RuntimeParams {
			if _, ours := sessionSettings[name]; !ours && name != "application_name" {
				t.Errorf("%q sends %s to the server", url, name)
			}
		}
	}
}
