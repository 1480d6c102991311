package main

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// hook is a receiver of alerts. It refuses each notice once before it takes it.
type hook struct {
	url, key string

	mu   sync.Mutex // guards what follows
	seen map[string]int
	came []alertNotice
	odd  []string // what was wrong with what came
}

// alertNotice is what a receiver relies on of a notice.
type alertNotice struct {
	Alert, Status, Severity, Summary, Worker, Key, ID, Version string
	Value, Threshold                                           float64
	Since, At                                                  time.Time
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{key: "webhook-key", seen: map[string]int{}}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	h.url = strings.Replace(server.URL, "http://", "http://bot:hunter2@", 1) + "/s3cret?token=t0ken"
	return h
}

// ServeHTTP checks as docs/alerts.md says that a receiver should.
func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	mac := hmac.New(sha256.New, []byte(h.key))
	mac.Write([]byte(r.Header.Get("Auditsink-Timestamp") + "."))
	mac.Write(body)
	sent, atErr := strconv.ParseInt(r.Header.Get("Auditsink-Timestamp"), 10, 64)
	var n alertNotice
	switch {
	case err != nil || atErr != nil || time.Since(time.Unix(sent, 0)).Abs() > 5*time.Minute:
		h.odd = append(h.odd, fmt.Sprintf("timestamp %q: %v %v", r.Header.Get("Auditsink-Timestamp"), err, atErr))
	case r.Header.Get("Auditsink-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)):
		h.odd = append(h.odd, "signature of "+string(body))
	case json.Unmarshal(body, &n) != nil || n.ID == "" || n.ID != r.Header.Get("Idempotency-Key"):
		h.odd = append(h.odd, "body "+string(body))
	case r.URL.Path != "/s3cret" || r.URL.RawQuery != "token=t0ken" || r.Method != http.MethodPost:
		h.odd = append(h.odd, "request "+r.Method+" "+r.URL.String())
	}
	h.seen[n.ID]++
	if h.seen[n.ID] == 1 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if h.seen[n.ID] == 2 {
		h.came = append(h.came, n)
	}
	w.WriteHeader(http.StatusNoContent)
}

// last is the last notice of an alert; zero if none came.
func (h *hook) last(alert string) (last alertNotice) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.came {
		if n.Alert == alert {
			last = n
		}
	}
	return last
}

// requireSound requires that all that came was ours, that raised and resolved took turns for each key, and that none came twice.
func (h *hook) requireSound(t *testing.T) map[string]int {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Empty(t, h.odd)
	last, firing := map[string]alertNotice{}, map[string]int{}
	for _, n := range h.came {
		if n.Status == "firing" {
			firing[n.Alert]++
			require.NotEqual(t, "firing", last[n.Key].Status, n.Key)
		} else {
			if strings.HasSuffix(n.Summary, "(a worker that starts finds it resolved)") {
				continue
			}
			require.Equal(t, "firing", last[n.Key].Status, n.Key)
			require.Equal(t, last[n.Key].Since, n.Since, n.Key)
		}
		last[n.Key] = n
	}
	return firing
}

// quickRules make alerts come and go in seconds; the conditions are those of the table.
const quickRules = `
lag_growing:         {threshold: 2, window: 3s, for: 500ms, cool_down: 0s}
flush_failing:       {threshold: 1, window: 10s, cool_down: 0s}
lane_halted:         {cool_down: 0s}
slow_queries:        {threshold: 1, window: 4s, for: 0s, cool_down: 0s}
low_hit_ratio:       {threshold: 0.5, window: 10s, for: 0s, cool_down: 0s}
pool_starved:        {window: 2s, for: 1s, cool_down: 0s}
connection_failures: {threshold: 1, window: 12s, cool_down: 0s}
partitions_future:   {for: 0s, cool_down: 0s}
maintenance_stale:   {threshold: 5, for: 500ms, cool_down: 0s}
quarantine_rising:   {threshold: 5, window: 4s, cool_down: 0s}
hash_mismatches:     {window: 4s, cool_down: 0s}
gaps:                {window: 10s, cool_down: 0s}
`

// watched is a worker whose alerts are watched.
type watched struct {
	*process
	hook *hook
}

// active tells whether the metric says that an alert is active.
func (w *watched) active(t *testing.T, alert string) bool {
	t.Helper()
	return w.metric(t, fmt.Sprintf(`alert_active{alert="%s"}`, alert)) == 1
}

// raised waits until metric, log and webhook all say so, and returns what the webhook says.
func (w *watched) raised(t *testing.T, alert string) alertNotice {
	t.Helper()
	w.says(t, `"level":"(?:warn|error)".*"msg":"alert: .*"alert":"(`+alert+`)"`)
	eventually(t, alert+" is sent", func() bool { return w.hook.last(alert).Status == "firing" })
	n := w.hook.last(alert)
	require.NotEmpty(t, n.Summary)
	require.False(t, n.Since.After(n.At))
	return n
}

// resolved waits until metric, log and webhook all say so.
func (w *watched) resolved(t *testing.T, alerts ...string) {
	t.Helper()
	for _, alert := range alerts {
		w.says(t, `"level":"info".*"msg":"alert resolved".*"alert":"(`+alert+`)"`)
		eventually(t, alert+" is sent to be resolved", func() bool { return w.hook.last(alert).Status == "resolved" })
		eventually(t, alert+" is not active", func() bool { return !w.active(t, alert) })
	}
}

// publishValues publishes values on a topic.
func publishValues(t *testing.T, broker *testkit.Broker, topic string, values ...string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	for _, v := range values {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Value: []byte(v)}).FirstErr())
	}
}

// skip has the group begin a topic at an offset.
func skip(t *testing.T, broker *testkit.Broker, group, topic string, to int64) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...))
	require.NoError(t, err)
	defer client.Close()
	offsets := kadm.Offsets{}
	offsets.AddOffset(topic, 0, to, -1)
	require.NoError(t, kadm.NewClient(client).CommitAllOffsets(t.Context(), group, offsets))
}

// locked does something while a table can't be changed.
func locked(t *testing.T, databaseURL, lock string, meanwhile func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // it ends the transaction, whatever it says
	_, err = conn.Exec(t.Context(), "BEGIN; "+lock)
	require.NoError(t, err)
	meanwhile()
}

// TestAlerts: every rule is raised by what it is about, and resolved when that is over: in the metric, once in the log, and at a webhook that checks the signature.
func TestAlerts(t *testing.T) {
	t.Parallel()
	broker := testkit.Kafka(t)
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	databaseURL, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	topic, skipped, doomed := testkit.Name(t), testkit.Name(t), testkit.Name(t)
	broker.CreateTopic(t, topic, 4, nil)
	broker.CreateTopic(t, skipped, 1, nil)
	broker.CreateTopic(t, doomed, 1, nil)
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(rules, []byte(quickRules), 0o600))
	w := &watched{hook: newHook(t)}
	redis := testkit.OwnRedis(t)
	s := workerSettings(broker, topic+","+skipped+","+doomed, databaseURL).with(settings{
		"KAFKA_GROUP": topic, "POOL_MAX_CONNS": "3", "MAINTENANCE_INTERVAL": "500ms", "REDIS_URL": redis.URL(), "SLOW_QUERY": "300ms",
		"ALERT_INTERVAL": "200ms", "ALERT_RULES_FILE": rules, "ALERT_WEBHOOK_URL": w.hook.url, "ALERT_WEBHOOK_KEY": w.hook.key,
	})
	succeed(t, s, "migrate", "up")
	publish(t, broker, skipped, 10, 1)
	publish(t, broker, doomed, 1, 2)
	skip(t, broker, topic, skipped, 7)
	w.process = start(t, s, "run")

	// A topic that is begun in its middle leaves a gap.
	n := w.raised(t, "gaps")
	require.Equal(t, []any{"critical", 1.0, 0.0, "dev"}, []any{n.Severity, n.Value, n.Threshold, n.Version})
	require.Equal(t, "auditsink/"+topic+"/gaps/"+n.Worker, n.Key)
	w.resolved(t, "gaps")

	// Records of which somebody changed something, and such as are none.
	event := fmt.Sprintf(`{"timestamp":%q,"action":"a","status":"success","hash":%q}`, time.Now().UTC().Format(time.RFC3339), strings.Repeat("0", 64))
	publishValues(t, broker, topic, event, event, "{", "{", "{", "{")
	w.raised(t, "quarantine_rising")
	w.raised(t, "hash_mismatches")
	w.resolved(t, "quarantine_rising", "hash_mismatches")

	// Positions can't be moved: batches fail at their lock timeout, hold the pool's connections, and events wait.
	locked(t, databaseURL, "LOCK TABLE audit_lane IN SHARE ROW EXCLUSIVE MODE", func() {
		publish(t, broker, topic, 100, 2)
		for _, alert := range []string{"pool_starved", "lag_growing", "flush_failing"} {
			w.raised(t, alert)
			require.True(t, w.active(t, alert), alert)
		}
		eventually(t, "health says so too", func() bool {
			return strings.Contains(component(t, w.process, "pool").advice, "AUDITSINK_POOL_MAX_CONNS")
		})
	})
	w.resolved(t, "pool_starved", "lag_growing", "flush_failing")

	// A table is in the way of a partition, so that no round of the leader succeeds.
	inTheWay := "audit_log_" + time.Now().UTC().AddDate(0, 0, 1-time.Now().UTC().Day()).AddDate(0, 2, 0).Format("2006_01")
	statement(t, databaseURL, fmt.Sprintf("DROP TABLE %[1]s; CREATE TABLE %[1]s (a int)", inTheWay))
	n = w.raised(t, "partitions_future")
	require.EqualValues(t, 1, n.Value)
	require.Equal(t, "auditsink/"+topic+"/partitions_future", n.Key, "the same from every worker")
	w.raised(t, "maintenance_stale")
	require.EqualValues(t, 1, w.metric(t, "leader"), "somebody leads, and can't")
	statement(t, databaseURL, "DROP TABLE "+inTheWay)
	w.resolved(t, "partitions_future", "maintenance_stale")

	// A topic is made again.
	require.NoError(t, broker.DeleteTopic(t.Context(), doomed))
	eventually(t, "the topic is made again", func() bool { return broker.NewTopic(t.Context(), doomed, 1, nil) == nil })
	publish(t, broker, doomed, 1, 3)
	require.EqualValues(t, 1, w.raised(t, "lane_halted").Value)
	eventually(t, "health says so too", func() bool {
		c := component(t, w.process, "kafka")
		return c.status == "critical" && strings.Contains(c.advice, "auditsink lanes list")
	})
	eventually(t, "it is on record", func() bool {
		return number(t, databaseURL, `SELECT count(*) FROM audit_lane WHERE topic = $1 AND state = 'halted'`, doomed) == 1
	})
	succeed(t, s, "lanes", "accept", doomed, "--reason", "made again on purpose")
	w.resolved(t, "lane_halted")

	// Reads wait for a lock.
	var reads sync.WaitGroup
	answers := make(chan int, 3)
	locked(t, databaseURL, "LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE", func() {
		for i := range 3 {
			reads.Go(func() { answers <- ask(t, w.process, fmt.Sprintf("/v1/events?limit=%d", 10+i)) })
		}
		eventually(t, "they wait", func() bool {
			return number(t, databaseURL, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'auditsink reads' AND wait_event_type = 'Lock'
				AND clock_timestamp() - state_change > interval '500ms'`) == 3
		})
	})
	reads.Wait()
	for range 3 {
		require.Equal(t, http.StatusOK, <-answers)
	}
	w.raised(t, "slow_queries")
	w.resolved(t, "slow_queries")

	// Questions that are never asked twice, and then one that always is.
	for i := range 80 {
		require.Equal(t, http.StatusOK, ask(t, w.process, fmt.Sprintf("/v1/events?limit=1&action=a%d", i)))
	}
	require.Less(t, w.raised(t, "low_hit_ratio").Value, 0.5)
	eventually(t, "most are hits", func() bool {
		for range 20 {
			require.Equal(t, http.StatusOK, ask(t, w.process, "/v1/events?limit=1&action=always"))
		}
		return w.hook.last("low_hit_ratio").Status == "resolved"
	})
	w.resolved(t, "low_hit_ratio")

	// Postgres goes away.
	require.NoError(t, server.Stop())
	w.raised(t, "connection_failures")
	require.True(t, w.active(t, "connection_failures"))
	eventually(t, "health says so too", func() bool { return component(t, w.process, "pool").status != "healthy" })
	require.NoError(t, server.Restart(t.Context()))
	w.resolved(t, "connection_failures")
	eventually(t, "all is well", func() bool { c := component(t, w.process, "pool"); return c.status == "healthy" })

	w.stop(t)
	firing := w.hook.requireSound(t)
	require.Len(t, firing, len(metrics.Rules()), "every rule")
	for alert, times := range firing {
		require.Len(t, regexp.MustCompile(`"msg":"alert: [^"]*","alert":"`+alert+`"`).FindAllString(w.errs.String(), -1), times, alert)
	}
	for _, secret := range []string{"hunter2", "s3cret", "t0ken", w.hook.key} {
		require.NotContains(t, w.errs.String(), secret)
	}
}

// TestAlertsLeave: a worker that stops takes back what it has raised of itself, and nothing of what is about all.
func TestAlertsLeave(t *testing.T) {
	t.Parallel()
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 18), testkit.Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(rules, []byte("gaps: {window: 1h}\npartitions_future: {for: 0s}\n"), 0o600))
	w := &watched{hook: newHook(t)}
	s := workerSettings(broker, topic, databaseURL).with(settings{
		"PARTITION_AHEAD": "1", "ALERT_INTERVAL": "200ms", "ALERT_RULES_FILE": rules, "ALERT_WEBHOOK_URL": w.hook.url, "ALERT_WEBHOOK_KEY": w.hook.key,
	})
	succeed(t, s, "migrate", "up")
	publish(t, broker, topic, 10, 1)
	skip(t, broker, topic, topic, 7)
	w.process = start(t, s, "run")
	w.raised(t, "gaps")
	w.raised(t, "partitions_future")
	w.stop(t)
	require.Equal(t, "resolved", w.hook.last("gaps").Status)
	require.Contains(t, w.hook.last("gaps").Summary, "stops")
	require.Equal(t, "firing", w.hook.last("partitions_future").Status, "partitions don't come by stopping")

	// The mended setting is that of a worker which has raised nothing.
	w.process = start(t, s.with(settings{"PARTITION_AHEAD": "6"}), "run")
	eventually(t, "it is resolved", func() bool { return w.hook.last("partitions_future").Status == "resolved" })
	w.stop(t)
	require.Equal(t, "auditsink/"+cmp.Or(s["KAFKA_GROUP"], "auditsink")+"/partitions_future", w.hook.last("partitions_future").Key)
	require.NotContains(t, w.errs.String(), "alert resolved")
	w.hook.requireSound(t)
}

// TestAlertRulesFileRefused: what is wrong with a rules file is said with its line, by the check of the settings and at the start.
func TestAlertRulesFileRefused(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(rules, []byte("gaps:\n  fro: 5m\nlags: {}\n"), 0o600))
	s := settings{"KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_TOPICS": "t", "POSTGRES_URL": "postgres://127.0.0.1:1/x", "HTTP_ADDR": "127.0.0.1:0", "ALERT_RULES_FILE": rules}
	for _, args := range [][]string{{"config", "check"}, {"run"}} {
		code, _, errs := execute(t, s, args...)
		require.Equal(t, exitUsage, code, "%q: %s", args, errs)
		for _, said := range []string{"AUDITSINK_ALERT_RULES_FILE", rules, `line 2: "fro"`, `line 3: "lags" is no alert`} {
			require.Contains(t, errs, said)
		}
	}
	code, _, errs := execute(t, s.with(settings{"ALERT_RULES_FILE": rules + ".none"}), "config", "check")
	require.Equal(t, exitUsage, code)
	require.Contains(t, errs, "no such file")
	require.NoError(t, os.WriteFile(rules, []byte("gaps:\n  for: 5m\n"), 0o600))
	code, _, errs = execute(t, s, "config", "check")
	require.Zero(t, code, errs)
}

// TestPrometheus: a real Prometheus scrapes a worker, has its metrics, and raises a rule of deploy/prometheus by them.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 18), testkit.Name(t)
	broker.CreateTopic(t, topic, 2, nil)
	s := workerSettings(broker, topic, databaseURL)
	succeed(t, s, "migrate", "up")
	w := start(t, s, "run")
	eventually(t, "it has its lanes", func() bool { return w.metric(t, "lanes_owned") == 2 })
	address := w.says(t, `"metrics":"http://([^"]+)/metrics"`)
	prometheus := testkit.OwnPrometheus(t, "../../deploy/prometheus/alerts.yaml", address)
	query := func(expression string) []string {
		values, err := prometheus.Query(t.Context(), expression)
		require.NoError(t, err)
		return values
	}
	eventually(t, "it was scraped", func() bool { return len(query("auditsink_lanes_owned")) == 1 })
	require.Equal(t, []string{"2"}, query("auditsink_lanes_owned"))
	require.Equal(t, []string{"1"}, query(`up{job="auditsink"}`))
	require.Len(t, query("auditsink_alert_active"), 12)
	firing := func(alert string) bool {
		alerts, err := prometheus.Alerts(t.Context())
		require.NoError(t, err)
		return alerts[alert] == "firing"
	}
	// Twice, since a counter's first sample is where it begins.
	eventually(t, "two scrapes", func() bool {
		n := query(`count_over_time(auditsink_quarantined_total{reason="hash_mismatch"}[5m])`)
		return len(n) == 1 && n[0] != "1"
	})
	require.False(t, firing("AuditsinkHashMismatches"))
	publishValues(t, broker, topic, fmt.Sprintf(`{"timestamp":%q,"action":"a","status":"success","hash":%q}`, time.Now().UTC().Format(time.RFC3339), strings.Repeat("0", 64)))
	eventually(t, "the rule fires", func() bool { return firing("AuditsinkHashMismatches") })
	eventually(t, "the worker raises it too", func() bool { return w.metric(t, `alert_active{alert="hash_mismatches"}`) == 1 })
	require.Equal(t, []string{"1"}, query(`auditsink_quarantined_total{reason="hash_mismatch"}`))
	w.stop(t)
}

// ask returns the status with which a worker answers, 0 where it doesn't. Unlike get it may be called from any goroutine.
func ask(t *testing.T, p *process, path string) int {
	base := regexp.MustCompile(`"metrics":"(http://[^"]+)/metrics"`).FindStringSubmatch(p.errs.String())[1]
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if errors.Join(err, resp.Body.Close()) != nil {
		return 0
	}
	return resp.StatusCode
}

// health is a component as /health tells it.
type health struct {
	status, advice string
	details        map[string]any
}

func component(t *testing.T, p *process, name string) health {
	t.Helper()
	_, body := p.get(t, "/health")
	var all struct {
		Components map[string]struct {
			Status  string
			Details map[string]any
		}
		Recommendations []string
	}
	require.NoError(t, json.Unmarshal([]byte(body), &all), body)
	c := all.Components[name]
	var advice []string
	for _, r := range all.Recommendations {
		if strings.HasPrefix(r, name) {
			advice = append(advice, r)
		}
	}
	return health{c.Status, strings.Join(advice, "\n"), c.Details}
}
