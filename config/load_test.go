package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestLoadReadsEverything(t *testing.T) {
	environment(t, map[string]string{
		"AUDITSINK_KAFKA_BROKERS": "a:9092, b ,[::1]:9093,", "AUDITSINK_KAFKA_TOPICS": " audit.events,^audit-.*$",
		"AUDITSINK_KAFKA_GROUP": "g", "AUDITSINK_KAFKA_START": "latest", "AUDITSINK_KAFKA_SESSION_TIMEOUT": "30s",
		"AUDITSINK_KAFKA_TLS": "true", "AUDITSINK_KAFKA_TLS_CA_FILE": "ca.pem", "AUDITSINK_KAFKA_TLS_CERT_FILE": "cert.pem",
		"AUDITSINK_KAFKA_TLS_KEY_FILE": "key.pem", "AUDITSINK_KAFKA_TLS_SERVER_NAME": "kafka",
		"AUDITSINK_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "AUDITSINK_KAFKA_SASL_USERNAME": "me",
		"AUDITSINK_KAFKA_SASL_PASSWORD_FILE": file(t, " pass\nword \n"),
		"AUDITSINK_POSTGRES_URL":             "postgres://u:p%40@h/d", "AUDITSINK_POSTGRES_MAINTENANCE_URL_FILE": file(t, "host=h user=u\r\n"),
		"AUDITSINK_POSTGRES_SSLMODE": "verify-full", "AUDITSINK_POSTGRES_PREPARED": "false",
		"AUDITSINK_POOL_MIN_CONNS": "0", "AUDITSINK_POOL_MAX_CONNS": "1", "AUDITSINK_POOL_IDLE_TIMEOUT": "1m",
		"AUDITSINK_POOL_ACQUIRE_TIMEOUT": "2s", "AUDITSINK_POOL_RETRY_ATTEMPTS": "4", "AUDITSINK_POOL_RETRY_DELAY": "3s",
		"AUDITSINK_COPY_CONNS": "3", "AUDITSINK_FLUSH_ROWS": "10", "AUDITSINK_FLUSH_BYTES": "2MB", "AUDITSINK_FLUSH_INTERVAL": "1ms", "AUDITSINK_BUFFER_BYTES": "2000000",
		"AUDITSINK_PARTITION_INTERVAL": "day", "AUDITSINK_PARTITION_AHEAD": "12", "AUDITSINK_RETENTION_ENFORCE": "true",
		"AUDITSINK_RETENTION_MIN_DAYS": "40", "AUDITSINK_RETENTION_GRACE_DAYS": "3", "AUDITSINK_INDEX_PROFILE": "lean", "AUDITSINK_INDEX_BUILD": "deferred", "AUDITSINK_INDEX_GRACE": "2h",
		"AUDITSINK_LEADER_LEASE": "5s", "AUDITSINK_MAINTENANCE_INTERVAL": "1m",
		"AUDITSINK_REDIS_URL": "rediss://u:p@r:6379/1", "AUDITSINK_REDIS_TIMEOUT": "40ms", "AUDITSINK_TOKENS_FILE": "tokens", "AUDITSINK_TOKEN_FILE": file(t, "token\n"),
		"AUDITSINK_QUERY_MAX_CONNS": "7", "AUDITSINK_QUERY_TIMEOUT": "4s", "AUDITSINK_SLOW_QUERY": "2s", "AUDITSINK_CACHE_TTL": "0",
		"AUDITSINK_CACHE_ENTRY_BYTES": "1KiB", "AUDITSINK_REPORT_INTERVAL": "1m", "AUDITSINK_DATABASE_MEMORY": "16GiB", "AUDITSINK_DATABASE_CORES": "8", "AUDITSINK_OPTIMIZE_CACHE": "false", "AUDITSINK_OPTIMIZE_ANALYZE": "false",
		"AUDITSINK_OPTIMIZE_VACUUM": "false", "AUDITSINK_ALERT_INTERVAL": "1s", "AUDITSINK_ALERT_RULES_FILE": "rules.yaml",
		"AUDITSINK_ALERT_WEBHOOK_URL": "https://hooks/x", "AUDITSINK_ALERT_WEBHOOK_KEY": "hook",
		"AUDITSINK_EVENT_MAX_BYTES": "1KiB", "AUDITSINK_EVENT_SIGNATURE_KEY": "key",
		"AUDITSINK_RETENTION_HORIZON_DAYS": "30", "AUDITSINK_HTTP_ADDR": ":0", "AUDITSINK_SHUTDOWN_TIMEOUT": "5s",
		"AUDITSINK_LOG_LEVEL": "debug", "AUDITSINK_LOG_FORMAT": "console",
	})
	cfg, err := Load(Kafka, Topics, Postgres)
	require.NoError(t, err)
	require.Equal(t, Config{
		KafkaBrokers: []string{"a:9092", "b", "[::1]:9093"}, KafkaTopics: []string{"audit.events", "^audit-.*$"},
		KafkaGroup: "g", KafkaStart: "latest", KafkaSessionTimeout: 30 * time.Second,
		KafkaTLS: true, KafkaTLSCAFile: "ca.pem", KafkaTLSCertFile: "cert.pem", KafkaTLSKeyFile: "key.pem", KafkaTLSServerName: "kafka",
		KafkaSASLMechanism: "SCRAM-SHA-512", KafkaSASLUsername: "me", KafkaSASLPassword: " pass\nword ",
		PostgresURL: "postgres://u:p%40@h/d", PostgresMaintenanceURL: "host=h user=u", PostgresSSLMode: "verify-full",
		PoolMaxConns: 1, PoolIdleTimeout: time.Minute, PoolAcquireTimeout: 2 * time.Second, PoolRetryAttempts: 4, PoolRetryDelay: 3 * time.Second,
		CopyConns: 3, FlushRows: 10, FlushBytes: 2e6, FlushInterval: time.Millisecond, BufferBytes: 2e6,
		PartitionInterval: "day", PartitionAhead: 12, RetentionEnforce: true, RetentionMinDays: 40, RetentionGraceDays: 3,
		IndexProfile: "lean", IndexBuild: "deferred", IndexGrace: 2 * time.Hour,
		LeaderLease: 5 * time.Second, MaintenanceInterval: time.Minute,
		RedisURL: "rediss://u:p@r:6379/1", RedisTimeout: 40 * time.Millisecond, TokensFile: "tokens", Token: "token", QueryMaxConns: 7,
		QueryTimeout: 4 * time.Second, SlowQuery: 2 * time.Second, CacheEntryBytes: 1024, ReportInterval: time.Minute, DatabaseMemory: 16 << 30, DatabaseCores: 8,
		AlertInterval: time.Second, AlertRulesFile: "rules.yaml", AlertWebhookURL: "https://hooks/x", AlertWebhookKey: "hook", EventMaxBytes: 1024, EventSignatureKey: "key", RetentionHorizonDays: 30,
		HTTPAddr: ":0", ShutdownTimeout: 5 * time.Second, LogLevel: "debug", LogFormat: "console",
	}, cfg)
}

// Variables of other programs that are called like ours but for the prefix have no effect.
func TestLoadTakesNothingWithoutThePrefix(t *testing.T) {
	environment(t, map[string]string{"LOG_LEVEL": "debug", "POSTGRES_URL": "postgres://other/d", "FLUSH_ROWS": "many"})
	cfg, err := Load()
	require.NoError(t, err)
	require.Equal(t, Default(), cfg)
}

func TestLoadTakesEmptyAsNotSet(t *testing.T) {
	vars := map[string]string{}
	for _, s := range settings() {
		vars[s.variable()] = ""
		if s.secret() {
			vars[s.file()] = ""
		}
	}
	environment(t, vars)
	cfg, err := Load()
	require.NoError(t, err)
	require.Equal(t, Default(), cfg)
}

// problems loads and returns what is wrong, as variable → problem; each variable once.
func problems(t testing.TB, vars map[string]string, needs ...Need) map[string]Problem {
	t.Helper()
	environment(t, vars)
	cfg, err := Load(needs...)
	if err == nil {
		return nil
	}
	require.Zero(t, cfg)
	var e *Error
	require.ErrorAs(t, err, &e)
	all := map[string]Problem{}
	for _, p := range e.Problems {
		require.NotContains(t, all, p.Variable, "a second problem with one variable: %s", p)
		require.NotEmpty(t, p.Cause)
		require.Regexp(t, `[.?]$`, p.Remedy)
		require.Contains(t, err.Error(), p.String())
		all[p.Variable] = p
	}
	return all
}

// Each environment has exactly one problem, with the variable named.
func TestLoadProblems(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	tests := map[string]struct {
		vars                           map[string]string
		needs                          []Need
		variable, value, cause, remedy string
	}{
		"no brokers": {map[string]string{"AUDITSINK_KAFKA_BROKERS": " , "}, []Need{Kafka}, "AUDITSINK_KAFKA_BROKERS", "", "is not set", "host:port"},
		"no topics":  {nil, []Need{Topics}, "AUDITSINK_KAFKA_TOPICS", "", "is not set", "Topics to take"},
		"no URL":     {nil, []Need{Postgres}, "AUDITSINK_POSTGRES_URL", "", "is not set", "Database"},

		"number":          {map[string]string{"AUDITSINK_FLUSH_ROWS": "many"}, nil, "AUDITSINK_FLUSH_ROWS", "many", "can't be read", "a whole number (1 to 1000000)"},
		"number overflow": {map[string]string{"AUDITSINK_POOL_MAX_CONNS": "99999999999"}, nil, "AUDITSINK_POOL_MAX_CONNS", "99999999999", "can't be read", "1 to 10000"},
		"below":           {map[string]string{"AUDITSINK_FLUSH_ROWS": "0"}, nil, "AUDITSINK_FLUSH_ROWS", "0", "out of range", "1 to 1000000"},
		"above":           {map[string]string{"AUDITSINK_RETENTION_HORIZON_DAYS": "36501"}, nil, "AUDITSINK_RETENTION_HORIZON_DAYS", "36501", "out of range", "1 to 36500"},
		"misplaced":       {map[string]string{"AUDITSINK_FLUSH_ROWS": "postgres://u:hunter2@h/d"}, nil, "AUDITSINK_FLUSH_ROWS", "postgres://u:xxxxx@h/d", "can't be read", "a whole number"},
		"bool":            {map[string]string{"AUDITSINK_KAFKA_TLS": "on"}, nil, "AUDITSINK_KAFKA_TLS", "on", "can't be read", "true or false"},
		"duration":        {map[string]string{"AUDITSINK_FLUSH_INTERVAL": "500"}, nil, "AUDITSINK_FLUSH_INTERVAL", "500", "can't be read", "written like 500ms"},
		"no duration":     {map[string]string{"AUDITSINK_FLUSH_INTERVAL": "0s"}, nil, "AUDITSINK_FLUSH_INTERVAL", "0s", "out of range", "at least 1ms"},
		"negative":        {map[string]string{"AUDITSINK_SHUTDOWN_TIMEOUT": "-5s"}, nil, "AUDITSINK_SHUTDOWN_TIMEOUT", "-5s", "out of range", "at least 1s"},
		"size":            {map[string]string{"AUDITSINK_BUFFER_BYTES": "64 megs"}, nil, "AUDITSINK_BUFFER_BYTES", "64 megs", "can't be read", "8MiB"},
		"choice":          {map[string]string{"AUDITSINK_KAFKA_START": "Earliest"}, nil, "AUDITSINK_KAFKA_START", "Earliest", "not allowed", "one of earliest, latest."},
		"choice or none":  {map[string]string{"AUDITSINK_POSTGRES_SSLMODE": "on"}, nil, "AUDITSINK_POSTGRES_SSLMODE", "on", "not allowed", "verify-full, or nothing."},

		"broker's scheme":   {map[string]string{"AUDITSINK_KAFKA_BROKERS": "kafka://k:9092"}, nil, "AUDITSINK_KAFKA_BROKERS", "kafka://k:9092", "not a broker's address", "without a scheme"},
		"broker's port":     {map[string]string{"AUDITSINK_KAFKA_BROKERS": "ok:1,k:port"}, nil, "AUDITSINK_KAFKA_BROKERS", "k:port", "not a broker's address", "host:port"},
		"broker's port 0":   {map[string]string{"AUDITSINK_KAFKA_BROKERS": "k:0"}, nil, "AUDITSINK_KAFKA_BROKERS", "k:0", "not a broker's address", "host:port"},
		"broker's host":     {map[string]string{"AUDITSINK_KAFKA_BROKERS": ":9092"}, nil, "AUDITSINK_KAFKA_BROKERS", ":9092", "not a broker's address", "host:port"},
		"topic's name":      {map[string]string{"AUDITSINK_KAFKA_TOPICS": "audit.*"}, nil, "AUDITSINK_KAFKA_TOPICS", "audit.*", "not a topic's name", "starts with ^"},
		"topic is a dot":    {map[string]string{"AUDITSINK_KAFKA_TOPICS": ".."}, nil, "AUDITSINK_KAFKA_TOPICS", "..", "not a topic's name", "letters"},
		"expression":        {map[string]string{"AUDITSINK_KAFKA_TOPICS": "ok,^audit-("}, nil, "AUDITSINK_KAFKA_TOPICS", "^audit-(", "missing closing", "Mend"},
		"comma in a topic":  {map[string]string{"AUDITSINK_KAFKA_TOPICS": "^[a,b"}, nil, "AUDITSINK_KAFKA_TOPICS", "^[a", "not a regular expression", "comma"},
		"Redis's scheme":    {map[string]string{"AUDITSINK_REDIS_URL": "http://u:secret@r"}, nil, "AUDITSINK_REDIS_URL", "http://u:xxxxx@r", "not such a URL", "redis://"},
		"Redis's URL":       {map[string]string{"AUDITSINK_REDIS_URL": "redis://:a%zz@r"}, nil, "AUDITSINK_REDIS_URL", "", "not a URL", "redis://"},
		"webhook":           {map[string]string{"AUDITSINK_ALERT_WEBHOOK_URL": "ftp://hooks.example/x"}, nil, "AUDITSINK_ALERT_WEBHOOK_URL", "ftp://hooks.example/x", "not such a URL", "https://"},
		"key of no webhook": {map[string]string{"AUDITSINK_ALERT_WEBHOOK_KEY": "k"}, nil, "AUDITSINK_ALERT_WEBHOOK_KEY", "", "no effect", "AUDITSINK_ALERT_WEBHOOK_URL"},
		"cert without key":  {map[string]string{"AUDITSINK_KAFKA_TLS": "1", "AUDITSINK_KAFKA_TLS_CERT_FILE": "c"}, nil, "AUDITSINK_KAFKA_TLS_CERT_FILE", "c", "has no key", "AUDITSINK_KAFKA_TLS_KEY_FILE"},
		"key without cert":  {map[string]string{"AUDITSINK_KAFKA_TLS": "1", "AUDITSINK_KAFKA_TLS_KEY_FILE": "k"}, nil, "AUDITSINK_KAFKA_TLS_KEY_FILE", "k", "has no certificate", "AUDITSINK_KAFKA_TLS_CERT_FILE"},
		"CA without TLS":    {map[string]string{"AUDITSINK_KAFKA_TLS_CA_FILE": "ca"}, nil, "AUDITSINK_KAFKA_TLS_CA_FILE", "ca", "no effect", "AUDITSINK_KAFKA_TLS=true"},
		"name without TLS":  {map[string]string{"AUDITSINK_KAFKA_TLS_SERVER_NAME": "n"}, nil, "AUDITSINK_KAFKA_TLS_SERVER_NAME", "n", "no effect", "AUDITSINK_KAFKA_TLS=true"},
		"SASL without user": {map[string]string{"AUDITSINK_KAFKA_SASL_MECHANISM": "PLAIN", "AUDITSINK_KAFKA_SASL_PASSWORD": "p"}, nil, "AUDITSINK_KAFKA_SASL_USERNAME", "", "is not set", "user"},
		"without password":  {map[string]string{"AUDITSINK_KAFKA_SASL_MECHANISM": "PLAIN", "AUDITSINK_KAFKA_SASL_USERNAME": "u"}, nil, "AUDITSINK_KAFKA_SASL_PASSWORD", "", "is not set", "_FILE"},
		"password's file":   {map[string]string{"AUDITSINK_KAFKA_SASL_MECHANISM": "PLAIN", "AUDITSINK_KAFKA_SASL_USERNAME": "u", "AUDITSINK_KAFKA_SASL_PASSWORD_FILE": missing}, nil, "AUDITSINK_KAFKA_SASL_PASSWORD_FILE", missing, "no such file", "may read"},
		"without mechanism": {map[string]string{"AUDITSINK_KAFKA_SASL_USERNAME": "u"}, nil, "AUDITSINK_KAFKA_SASL_MECHANISM", "", "is not set", "SCRAM-SHA-256"},
		"mechanism":         {map[string]string{"AUDITSINK_KAFKA_SASL_MECHANISM": "plain", "AUDITSINK_KAFKA_SASL_USERNAME": "u"}, nil, "AUDITSINK_KAFKA_SASL_MECHANISM", "plain", "not allowed", "PLAIN, SCRAM-SHA-256"},

		"other database":  {map[string]string{"AUDITSINK_POSTGRES_URL": "mysql://u:hunter2@h/d?password=hunter2"}, nil, "AUDITSINK_POSTGRES_URL", "mysql://u:xxxxx@h/d", "not a URL of PostgreSQL", "postgres://"},
		"only a password": {map[string]string{"AUDITSINK_POSTGRES_URL": "hunter2"}, nil, "AUDITSINK_POSTGRES_URL", "", "not a URL", "postgres://"},
		"broken URL":      {map[string]string{"AUDITSINK_POSTGRES_URL": "postgres://u:hunter2%@h/d"}, nil, "AUDITSINK_POSTGRES_URL", "", "not a URL", "%XX"},
		"slash in it":     {map[string]string{"AUDITSINK_POSTGRES_MAINTENANCE_URL": "postgres://u:12/hunter2@h/d"}, nil, "AUDITSINK_POSTGRES_MAINTENANCE_URL", "", "@ after the host", "%XX"},
		"no such file":    {map[string]string{"AUDITSINK_POSTGRES_URL_FILE": missing}, []Need{Postgres}, "AUDITSINK_POSTGRES_URL_FILE", missing, "no such file", "may read"},
		"empty file":      {map[string]string{"AUDITSINK_EVENT_SIGNATURE_KEY_FILE": file(t, "\n")}, nil, "AUDITSINK_EVENT_SIGNATURE_KEY_FILE", "", "empty file", "Write"},
		"both":            {map[string]string{"AUDITSINK_POSTGRES_URL": "postgres://h/d", "AUDITSINK_POSTGRES_URL_FILE": missing}, []Need{Postgres}, "AUDITSINK_POSTGRES_URL", "", "both set", "one of them"},

		"min over max":   {map[string]string{"AUDITSINK_POOL_MIN_CONNS": "21"}, nil, "AUDITSINK_POOL_MIN_CONNS", "21", `AUDITSINK_POOL_MAX_CONNS="20"`, "Lower"},
		"address":        {map[string]string{"AUDITSINK_HTTP_ADDR": "9464"}, nil, "AUDITSINK_HTTP_ADDR", "9464", "not an address", ":9464"},
		"URL as address": {map[string]string{"AUDITSINK_HTTP_ADDR": "http://localhost:9464"}, nil, "AUDITSINK_HTTP_ADDR", "http://localhost:9464", "not an address", "host:port"},

		"misspelt":          {map[string]string{"AUDITSINK_POSTGRES_ULR": "postgres://u:hunter2@h"}, nil, "AUDITSINK_POSTGRES_ULR", "", "not a setting", "Did you mean AUDITSINK_POSTGRES_URL?"},
		"misspelt file":     {map[string]string{"AUDITSINK_POSTGRESS_URL_FILE": "f"}, nil, "AUDITSINK_POSTGRESS_URL_FILE", "", "not a setting", "Did you mean AUDITSINK_POSTGRES_URL_FILE?"},
		"file of no secret": {map[string]string{"AUDITSINK_HTTP_ADDR_FILE": "f"}, nil, "AUDITSINK_HTTP_ADDR_FILE", "", "not a setting", "Did you mean AUDITSINK_HTTP_ADDR?"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			all := problems(t, test.vars, test.needs...)
			require.Len(t, all, 1)
			p := all[test.variable]
			require.Equal(t, test.variable, p.Variable)
			if test.value != "" || !strings.HasSuffix(test.variable, "_FILE") {
				require.Equal(t, test.value, p.Value)
			}
			require.Contains(t, p.Cause, test.cause)
			require.Contains(t, p.Remedy, test.remedy)
			require.NotContains(t, p.String(), "hunter2")
		})
	}
}

func TestStrangersAreNoProblem(t *testing.T) {
	environment(t, map[string]string{"AUDITSINK_COLOUR": "hunter2", "AUDITSINK_METRICS_SERVICE_HOST": "10.0.0.1", "AUDITSINK_PORT": "tcp://10.0.0.1:9464"})
	_, err := Load()
	require.NoError(t, err)
	strangers := Strangers()
	require.Len(t, strangers, 3)
	require.Equal(t, "AUDITSINK_COLOUR is not a setting. `auditsink config reference` lists what there is.", strangers[0].String())
	require.Contains(t, strangers[1].String(), "enableServiceLinks: false")
	require.Contains(t, strangers[2].String(), "enableServiceLinks: false")
}

func TestLoadTakesConnectionStrings(t *testing.T) {
	for _, conn := range []string{
		"postgres://h", "postgresql://u@h:5432/d", "postgres://u:p%40%2F@h/d?sslmode=require", "postgres:///d?host=/run/postgresql",
		"postgres://h/d?user=u@server&password=p", "postgres://u:p@[::1]:5432/d", "postgres://u:p@h1:5432,h2:5433/d",
		"host=h", " host = h password='a b@/'", "service=audit",
	} {
		environment(t, map[string]string{"AUDITSINK_POSTGRES_URL": conn})
		cfg, err := Load(Postgres)
		require.NoError(t, err, conn)
		require.Equal(t, conn, cfg.PostgresURL.Reveal())
	}
}

func TestLoadReportsAllProblemsAtOnceInOrder(t *testing.T) {
	environment(t, map[string]string{
		"AUDITSINK_LOG_LEVEL": "loud", "AUDITSINK_FLUSH_ROWS": "x", "AUDITSINK_FLUSH_BYTES": "y", "AUDITSINK_POOL_MIN_CONNS": "30",
		"AUDITSINK_KAFKA_BROKER": "k:9092", "AUDITSINK_A": "1", "AUDITSINK_HTTP_ADR": "1",
		"AUDITSINK_KAFKA_SASL_PASSWORD": "p", "AUDITSINK_KAFKA_SASL_PASSWORD_FILE": "f",
	})
	_, err := Load(Kafka, Topics, Postgres)
	require.EqualError(t, err, `the configuration has 10 problems:
  - AUDITSINK_KAFKA_BROKERS is not set. Set it: Brokers to find the cluster by: host:port, parted by commas.
  - AUDITSINK_KAFKA_TOPICS is not set. Set it: Topics to take events from, parted by commas; an entry starting with ^ is a regular expression (RE2, without commas).
  - AUDITSINK_KAFKA_SASL_PASSWORD and AUDITSINK_KAFKA_SASL_PASSWORD_FILE are both set. Set one of them.
  - AUDITSINK_POSTGRES_URL is not set. Set it: Database to store in: a postgres:// URL or key=value pairs.
  - AUDITSINK_POOL_MIN_CONNS="30" is more than AUDITSINK_POOL_MAX_CONNS="20". Lower the one or raise the other.
  - AUDITSINK_FLUSH_ROWS="x" can't be read. Set a whole number (1 to 1000000).
  - AUDITSINK_FLUSH_BYTES="y" can't be read. Set a size (1 to 1GiB), in bytes or written like 512KiB, 8MiB or 10MB.
  - AUDITSINK_LOG_LEVEL="loud" is not allowed. Set one of debug, info, warn, error.
  - AUDITSINK_HTTP_ADR is not a setting. Did you mean AUDITSINK_HTTP_ADDR?
  - AUDITSINK_KAFKA_BROKER is not a setting. Did you mean AUDITSINK_KAFKA_BROKERS?`)
}

// Whatever the password and wherever it stands, nothing of it is in an error.
func TestLoadNeverShowsAPassword(t *testing.T) {
	environment(t, nil)
	rapid.Check(t, func(rt *rapid.T) {
		noise := rapid.StringOfN(rapid.SampledFrom([]rune(`19a@:/?#%&=[]\ +;,^"'`)), 0, 12, -1)
		password := noise.Draw(rt, "before") + "zq" + noise.Draw(rt, "between") + "zq" + noise.Draw(rt, "after")
		form := rapid.SampledFrom([]string{
			"postgres://user:PW@host:5432/db", "postgresql://user:PW@host", "mysql://user:PW@host/db", "PW",
			"user:PW@host", "postgres:PW", "jdbc:postgresql://host/db?password=PW", "mysql://host/db?password=PW", "password PW", "//user:PW@host/db",
		}).Draw(rt, "form")
		value := strings.ReplaceAll(form, "PW", password)
		variable := rapid.SampledFrom([]string{
			"AUDITSINK_POSTGRES_URL", "AUDITSINK_POSTGRES_MAINTENANCE_URL", "AUDITSINK_KAFKA_SASL_PASSWORD", "AUDITSINK_POSTGRES_URI",
		}).Draw(rt, "variable")
		t.Setenv(variable, value)
		defer os.Unsetenv(variable) //nolint:errcheck // it was set just now
		t.Setenv("AUDITSINK_FLUSH_ROWS", "wrong")
		_, err := Load(Kafka, Topics, Postgres)
		if err == nil || strings.Contains(err.Error(), "zq") {
			rt.Fatalf("%s=%s: %v", variable, value, err)
		}
	})
}

func TestValidateChecksSettingsMadeInCode(t *testing.T) {
	cfg := Default()
	require.NoError(t, cfg.Validate())
	require.ErrorContains(t, cfg.Validate(Kafka), "AUDITSINK_KAFKA_BROKERS is not set")
	cfg.KafkaBrokers, cfg.KafkaTopics, cfg.PostgresURL = []string{"k"}, []string{"t"}, "host=h"
	require.NoError(t, cfg.Validate(Kafka, Topics, Postgres))

	cfg.FlushRows, cfg.HTTPAddr, cfg.PoolMinConns = 0, "", cfg.PoolMaxConns+1
	var e *Error
	require.ErrorAs(t, cfg.Validate(), &e)
	require.Len(t, e.Problems, 3)
	require.Equal(t, "AUDITSINK_POOL_MIN_CONNS", e.Problems[0].Variable)
	require.Equal(t, "AUDITSINK_FLUSH_ROWS", e.Problems[1].Variable)
	require.Equal(t, "AUDITSINK_HTTP_ADDR", e.Problems[2].Variable)
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}, {"ULR", "URL", 2}} {
		require.Equal(t, test.want, distance(test.a, test.b), "%s→%s", test.a, test.b)
	}
}
