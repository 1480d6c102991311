package main

import (
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// password is nowhere else in these tests: where it turns up in output, a secret got out.
const password = "correct-horse-battery"

// statement runs SQL as the superuser.
func statement(t *testing.T, databaseURL, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

// workerSettings are those of a worker, with a port of the kernel's choice.
func workerSettings(broker *testkit.Broker, topic, databaseURL string) settings {
	return settings{
		"KAFKA_BROKERS": strings.Join(broker.Brokers(), ","), "KAFKA_TOPICS": topic, "KAFKA_GROUP": topic,
		"POSTGRES_URL": databaseURL, "HTTP_ADDR": "127.0.0.1:0",
		"FLUSH_INTERVAL": "100ms", "POOL_RETRY_DELAY": "100ms",
	}
}

// TestRefuses: what stays wrong until somebody acts ends the program at once, and it says what to do.
func TestRefuses(t *testing.T) {
	t.Parallel()
	broker := testkit.Kafka(t)
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15, Password: password})
	database := func(t *testing.T) string {
		u, err := server.CreateDatabase(t.Context())
		require.NoError(t, err)
		return u
	}
	// login replaces user, password or database.
	login := func(t *testing.T, databaseURL, user, pass, name string) string {
		u, err := url.Parse(databaseURL)
		require.NoError(t, err)
		u.User = url.UserPassword(user, pass)
		if name != "" {
			u.Path = "/" + name
		}
		return u.String()
	}
	topic := testkit.Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	migrated := database(t)
	good := workerSettings(broker, topic, migrated)
	succeed(t, good, "migrate", "up")

	empty, plain := database(t), database(t)
	statement(t, plain, `CREATE TABLE audit_log (id serial PRIMARY KEY, timestamp timestamptz, action text)`)
	statement(t, plain, `INSERT INTO audit_log (timestamp, action) VALUES (now(), 'of the replaced system')`)
	readOnly := database(t)
	succeed(t, good.with(settings{"POSTGRES_URL": readOnly}), "migrate", "up")
	statement(t, readOnly, `ALTER DATABASE `+strings.TrimPrefix(mustParse(t, readOnly).Path, "/")+` SET default_transaction_read_only = on`)
	emptyReadOnly := database(t)
	statement(t, emptyReadOnly, `ALTER DATABASE `+strings.TrimPrefix(mustParse(t, emptyReadOnly).Path, "/")+` SET default_transaction_read_only = on`)
	newer := database(t)
	succeed(t, good.with(settings{"POSTGRES_URL": newer}), "migrate", "up")
	statement(t, newer, `INSERT INTO audit_schema_version (version_id, is_applied) VALUES (99999, true)`)
	statement(t, migrated, `CREATE ROLE visitor LOGIN PASSWORD '`+password+`'`)
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close() //nolint:errcheck // nothing was written

	for name, c := range map[string]struct {
		change settings // an empty value unsets
		args   []string // run, unless given
		code   int
		want   []string
	}{
		"unknown topic":              {settings{"KAFKA_TOPICS": "no-such-topic"}, nil, 2, []string{`no topic "no-such-topic"`, "AUDITSINK_KAFKA_TOPICS"}},
		"one topic of two unknown":   {settings{"KAFKA_TOPICS": topic + ",no-such-topic"}, nil, 2, []string{`no topic "no-such-topic"`}},
		"no brokers":                 {settings{"KAFKA_BROKERS": ""}, nil, 2, []string{"AUDITSINK_KAFKA_BROKERS is not set"}},
		"no database, run":           {settings{"POSTGRES_URL": ""}, nil, 2, []string{"AUDITSINK_POSTGRES_URL is not set"}},
		"no database, migrate":       {settings{"POSTGRES_URL": ""}, []string{"migrate", "up"}, 2, []string{"AUDITSINK_POSTGRES_URL is not set"}},
		"wrong password, run":        {settings{"POSTGRES_URL": login(t, migrated, "postgres", "not-"+password, "")}, nil, 2, []string{"refused the user or the password", "AUDITSINK_POSTGRES_URL"}},
		"wrong password, migrate":    {settings{"POSTGRES_URL": login(t, migrated, "postgres", "not-"+password, "")}, []string{"migrate", "up"}, 2, []string{"refused the user or the password", "AUDITSINK_POSTGRES_URL"}},
		"unknown user":               {settings{"POSTGRES_URL": login(t, migrated, "nobody-known", password, "")}, nil, 2, []string{"refused the user or the password"}},
		"no such database, run":      {settings{"POSTGRES_URL": login(t, migrated, "postgres", password, "no_such_db")}, nil, 2, []string{"database does not exist", "no_such_db", "AUDITSINK_POSTGRES_URL"}},
		"no such database, migrate":  {settings{"POSTGRES_URL": login(t, migrated, "postgres", password, "no_such_db")}, []string{"migrate", "up"}, 2, []string{"database does not exist", "no_such_db"}},
		"no privilege":               {settings{"POSTGRES_URL": login(t, migrated, "visitor", password, "")}, nil, 2, []string{"lacks a privilege"}},
		"no schema":                  {settings{"POSTGRES_URL": empty}, nil, 2, []string{"auditsink migrate up"}},
		"no schema, lanes":           {settings{"POSTGRES_URL": empty}, []string{"lanes", "list"}, 2, []string{"auditsink migrate up"}},
		"no schema, verify":          {settings{"POSTGRES_URL": empty}, []string{"verify"}, 2, []string{"auditsink migrate up"}},
		"plain audit_log, run":       {settings{"POSTGRES_URL": plain}, nil, 2, []string{"audit_log is not partitioned"}},
		"plain audit_log, migrate":   {settings{"POSTGRES_URL": plain}, []string{"migrate", "up"}, 2, []string{"audit_log is not partitioned"}},
		"plain audit_log, verify":    {settings{"POSTGRES_URL": plain}, []string{"verify"}, 2, []string{"audit_log is not partitioned"}},
		"newer schema, run":          {settings{"POSTGRES_URL": newer}, nil, 2, []string{"newer than this binary"}},
		"newer schema, migrate":      {settings{"POSTGRES_URL": newer}, []string{"migrate", "up"}, 2, []string{"newer than this binary"}},
		"read-only, run":             {settings{"POSTGRES_URL": readOnly}, nil, 1, []string{"read-only", "primary"}},
		"read-only, migrate":         {settings{"POSTGRES_URL": emptyReadOnly}, []string{"migrate", "up"}, 1, []string{"read-only", "primary"}},
		"port in use":                {settings{"HTTP_ADDR": taken.Addr().String()}, nil, 1, []string{"AUDITSINK_HTTP_ADDR", taken.Addr().String(), "in use"}},
		"misspelt variable, run":     {settings{"FLUSH_ROW": password}, nil, 2, []string{"AUDITSINK_FLUSH_ROW is not a setting", "Did you mean AUDITSINK_FLUSH_ROWS?"}},
		"misspelt variable, migrate": {settings{"POSTGRES_SSL_MODE": "verify-full"}, []string{"migrate", "up"}, 2, []string{"AUDITSINK_POSTGRES_SSL_MODE is not a setting"}},
		"a password cut off by #":    {settings{"POSTGRES_URL": "postgres://u:" + password + "#@127.0.0.1/d"}, nil, 2, []string{"AUDITSINK_POSTGRES_URL", "is not shown"}},
		"a password that ends in %":  {settings{"POSTGRES_URL": "postgres://u:" + password + "%@127.0.0.1/d"}, nil, 2, []string{"AUDITSINK_POSTGRES_URL", "is not shown"}},
		"a port that's no number":    {settings{"POSTGRES_URL": "host=127.0.0.1 port=many password=" + password}, []string{"migrate", "up"}, 2, []string{"connection URL"}},
		"no such certificate":        {settings{"POSTGRES_URL": migrated + "&sslrootcert=/no/such/file", "POSTGRES_SSLMODE": "verify-full"}, nil, 2, []string{"/no/such/file"}},
		"several problems": {
			settings{"KAFKA_BROKERS": "", "FLUSH_ROWS": "many", "HTTP_ADDR": "nowhere", "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_PASSWORD": password},
			nil, 2,
			[]string{"4 problems", "AUDITSINK_KAFKA_BROKERS is not set", `AUDITSINK_FLUSH_ROWS="many"`, `AUDITSINK_HTTP_ADDR="nowhere"`, "AUDITSINK_KAFKA_SASL_USERNAME"},
		},
		"unknown command":        {nil, []string{"rnu"}, 2, []string{`unknown command "rnu"`}},
		"unknown subcommand":     {nil, []string{"migrate", "down"}, 2, []string{`"down"`}},
		"unknown flag":           {nil, []string{"run", "--nope"}, 2, []string{"unknown flag: --nope"}},
		"an argument too many":   {nil, []string{"run", "fast"}, 2, []string{`"fast"`, "auditsink run --help"}},
		"an argument to verify":  {nil, []string{"verify", "fast"}, 2, []string{`"fast"`}},
		"a flag without a value": {nil, []string{"verify", "--limit", "many"}, 2, []string{"--limit"}},
		"no command":             {nil, []string{}, 2, []string{"which command?"}},
		"no subcommand":          {nil, []string{"lanes"}, 2, []string{"which of these?"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, args := good.with(c.change), c.args
			if args == nil {
				args = []string{"run"}
			}
			code, out, errs := execute(t, s, args...)
			require.Equal(t, c.code, code, "%s\n%s", out, errs)
			for _, want := range c.want {
				require.Contains(t, errs, want)
			}
			require.NotContains(t, out+errs, password)
			last := strings.TrimSpace(errs)[strings.LastIndex(strings.TrimSpace(errs), "\nauditsink: ")+1:]
			require.True(t, strings.HasPrefix(last, "auditsink: "), "the reason comes last: %s", errs)
			require.NotContains(t, errs, "panic")
			require.NotContains(t, errs, "goroutine ")
		})
	}

	t.Run("unknown variable", func(t *testing.T) { // perhaps of a newer version: worth a warning
		p := start(t, good.with(settings{"FOO": password}), "run")
		p.says(t, "AUDITSINK_FOO is not a setting")
		p.says(t, "worker started")
		p.stop(t)
		require.NotContains(t, p.errs.String(), password)
	})
	t.Run("SASL password", func(t *testing.T) {
		sasl := testkit.OwnKafka(t, testkit.KafkaOptions{Users: []testkit.User{{Mechanism: testkit.ScramSHA256, Name: "sink", Password: password}}})
		code, out, errs := execute(t, good.with(settings{
			"KAFKA_BROKERS": strings.Join(sasl.BrokersOn(testkit.SASLPlaintext), ","), "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
			"KAFKA_SASL_USERNAME": "sink", "KAFKA_SASL_PASSWORD": password + "-not",
		}), "run")
		require.Equal(t, 2, code, errs)
		require.Contains(t, errs, "the brokers refused user sink with SCRAM-SHA-256")
		require.NotContains(t, out+errs, password)
	})
	t.Run("secret in a file", func(t *testing.T) {
		code, _, errs := execute(t, good.with(settings{"POSTGRES_URL": "", "POSTGRES_URL_FILE": filepath.Join(t.TempDir(), "gone")}), "run")
		require.Equal(t, 2, code)
		require.Contains(t, errs, "AUDITSINK_POSTGRES_URL_FILE")
	})
}

func mustParse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	require.NoError(t, err)
	return u
}

// TestAwaits: what passes by itself is waited for, and said so.
func TestAwaits(t *testing.T) {
	t.Parallel()
	t.Run("Postgres", func(t *testing.T) {
		server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18, Password: password})
		databaseURL, err := server.CreateDatabase(t.Context())
		require.NoError(t, err)
		topic := testkit.Name(t)
		broker := testkit.Kafka(t)
		broker.CreateTopic(t, topic, 2, nil)
		s := workerSettings(broker, topic, databaseURL)
		succeed(t, s, "migrate", "up")
		require.NoError(t, server.Stop())

		code, out, errs := execute(t, s, "migrate", "up")
		require.Equal(t, 1, code)
		require.Empty(t, out)
		require.Contains(t, errs, "Postgres can't be reached")
		require.NotContains(t, errs, password)

		told := start(t, s, "run")
		told.says(t, "waiting for Postgres")
		begin := time.Now()
		told.stop(t)
		require.Less(t, time.Since(begin), 20*time.Second) // its own patience is 30 s

		p := start(t, s, "run")
		require.Contains(t, p.says(t, `waiting for Postgres.*`), "Postgres can't be reached")
		status, body := p.get(t, "/readyz")
		require.Equal(t, 503, status)
		require.Contains(t, body, "Postgres")
		status, _ = p.get(t, "/healthz")
		require.Equal(t, 200, status)
		require.NoError(t, server.Restart(t.Context()))
		publish(t, broker, topic, 200, 0)
		eventually(t, "it is ready", func() bool { status, _ := p.get(t, "/readyz"); return status == 200 })
		arrived(t, databaseURL, 200)
		p.stop(t)
		require.NotContains(t, p.errs.String(), password)
	})
	t.Run("Postgres hangs", func(t *testing.T) {
		server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
		databaseURL, err := server.CreateDatabase(t.Context())
		require.NoError(t, err)
		s := workerSettings(testkit.Kafka(t), "any", databaseURL).with(settings{"POOL_ACQUIRE_TIMEOUT": "1s", "POOL_RETRY_ATTEMPTS": "1"})
		require.NoError(t, server.Pause())
		code, _, errs := execute(t, s, "migrate", "up")
		require.Equal(t, 1, code)
		require.NotContains(t, errs, "all connections are busy", "there are none")
		require.NoError(t, server.Continue())
	})
	t.Run("Kafka", func(t *testing.T) {
		broker := testkit.OwnKafka(t, testkit.KafkaOptions{})
		topic := testkit.Name(t)
		broker.CreateTopic(t, topic, 2, nil)
		databaseURL := testkit.Postgres(t, 18)
		s := workerSettings(broker, topic, databaseURL)
		succeed(t, s, "migrate", "up")
		require.NoError(t, broker.Kill())

		told := start(t, s, "run")
		told.says(t, `answering HTTP`)
		eventually(t, "it waits for Kafka", func() bool { _, body := told.get(t, "/readyz"); return strings.Contains(body, "waiting for Kafka") })
		begin := time.Now()
		told.stop(t)
		require.Less(t, time.Since(begin), 20*time.Second)

		p := start(t, s, "run")
		line := p.says(t, `waiting for Kafka.*`)
		require.Contains(t, line, "AUDITSINK_KAFKA_BROKERS="+broker.Brokers()[0])
		require.NoError(t, broker.Restart(t.Context()))
		publish(t, broker, topic, 200, 0)
		arrived(t, databaseURL, 200)
		p.stop(t)
	})
}
