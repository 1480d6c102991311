package metrics_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

var update = flag.Bool("update", false, "write what is made from the table of rules")

const (
	rulesFile = "../deploy/prometheus/alerts.yaml"
	rulesTest = "../deploy/prometheus/alerts_test.yaml"
	rulesDocs = "../docs/alerts.md"
)

// TestRulesPrometheus: the rule file is made from the table, Prometheus takes it, and by its unit tests each rule is raised and resolved.
func TestRulesPrometheus(t *testing.T) {
	want, err := metrics.PrometheusRules(metrics.Rules())
	require.NoError(t, err)
	golden(t, rulesFile, func([]byte) []byte { return want })
	out, err := testkit.PromtoolRules(t, rulesFile, rulesTest)
	require.NoError(t, err, out)
	tests, err := os.ReadFile(rulesTest)
	require.NoError(t, err)
	for _, r := range metrics.Rules() {
		raised := regexp.MustCompile(fmt.Sprintf(`alertname="%s",alertstate="firing"\}', eval_time: \S+, exp_samples: \[\{`, r.PrometheusName()))
		resolved := regexp.MustCompile(fmt.Sprintf(`alertname="%s",alertstate="firing"\}', eval_time: \S+, exp_samples: \[\]`, r.PrometheusName()))
		require.Len(t, raised.FindAll(tests, -1), 1, r.Name)
		require.Len(t, resolved.FindAll(tests, -1), 2, r.Name)
	}
}

// TestRulesPromtoolFinds: what the test above relies on notices a rule that is another.
func TestRulesPromtoolFinds(t *testing.T) {
	rules := metrics.Rules()
	rules[0].Threshold = 1e9
	text, err := metrics.PrometheusRules(rules)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/alerts.yaml", text, 0o600))
	tests, err := os.ReadFile(rulesTest)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/alerts_test.yaml", tests, 0o600))
	out, err := testkit.PromtoolRules(t, dir+"/alerts.yaml", dir+"/alerts_test.yaml")
	require.Error(t, err)
	require.Contains(t, out, "AuditsinkLagGrowing")
}

// TestRulesDocs: the table in the documentation is made from the rules.
func TestRulesDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString("| alert | severity | raised when | window | for | cool-down | what to do |\n|---|---|---|---|---|---|---|\n")
	for _, r := range metrics.Rules() {
		compare, name, window := "over", "`"+r.Name+"`", "-"
		if r.Below {
			compare = "under"
		}
		if r.Everywhere {
			name += " *"
		}
		if r.Window > 0 {
			window = short(r.Window)
		}
		fmt.Fprintf(&b, "| %s | %s | %s: %s %s %s | %s | %s | %s | %s |\n", name, r.Severity, r.Summary, r.Value, compare,
			strconv.FormatFloat(r.Threshold, 'f', -1, 64), window, short(r.For), short(r.CoolDown), r.Remedy)
	}
	const begin, end = "<!-- rules:begin -->\n", "<!-- rules:end -->"
	golden(t, rulesDocs, func(has []byte) []byte {
		before, rest, ok := bytes.Cut(has, []byte(begin))
		require.True(t, ok)
		_, after, ok := bytes.Cut(rest, []byte(end))
		require.True(t, ok)
		return []byte(string(before) + begin + b.String() + end + string(after))
	})
}

func short(d time.Duration) string {
	text := d.String()
	text = strings.TrimSuffix(text, "m0s")
	if text != d.String() {
		text += "m"
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// golden holds a file against what it should be, or writes it.
func golden(t *testing.T, path string, want func(has []byte) []byte) {
	t.Helper()
	has, err := os.ReadFile(path)
	if err != nil && !*update {
		require.NoError(t, err)
	}
	if *update {
		require.NoError(t, os.WriteFile(path, want(has), 0o600))
		return
	}
	require.Equal(t, string(want(has)), string(has), "go test ./metrics -run Rules -update")
}

// TestRulesFromTheStart: each alert is there before anything was judged, and has what an operator needs.
func TestRulesFromTheStart(t *testing.T) {
	body := text(t, metrics.New("v1", event.Reasons()))
	for _, r := range metrics.Rules() {
		require.Contains(t, body, fmt.Sprintf("auditsink_alert_active{alert=%q} 0\n", r.Name))
		require.Contains(t, []metrics.Status{metrics.Warning, metrics.Critical}, r.Severity)
		for _, said := range []string{r.Summary, r.Remedy, r.Value, r.PromQL} {
			require.NotEmpty(t, said, r.Name)
			require.NotContains(t, said, "|\n")
		}
		require.Equal(t, r.Window > 0, strings.Contains(r.PromQL, "$window"), r.Name)
	}
}

// clinic is a worker's metrics, its alerts, and a clock.
type clinic struct {
	t      *testing.T
	m      *metrics.Metrics
	alerts *metrics.Alerts
	now    time.Time
}

// newClinic judges by the rules of these names, or by all, changed by the rules file.
func newClinic(t *testing.T, file string) *clinic {
	t.Helper()
	rules, err := metrics.ParseRules([]byte(file), metrics.Rules())
	require.NoError(t, err)
	c := &clinic{t: t, m: metrics.New("v1", event.Reasons()), now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)}
	c.m.MaintenanceLastSuccess.Set(float64(c.now.Unix()))
	c.alerts = metrics.NewAlerts(c.m, rules)
	require.Empty(t, c.judge(0))
	return c
}

// judge looks after some time, and returns what is told, as +name or -name.
func (c *clinic) judge(after time.Duration) (told []string) {
	c.t.Helper()
	for _, n := range c.look(after) {
		told = append(told, map[bool]string{true: "+", false: "-"}[n.Firing]+n.Rule.Name)
	}
	return told
}

func (c *clinic) look(after time.Duration) []metrics.Notice {
	c.t.Helper()
	c.now = c.now.Add(after)
	s, err := c.m.Sample(c.now)
	require.NoError(c.t, err)
	return c.alerts.Judge(s)
}

// during looks every 15 seconds, and returns all that is told.
func (c *clinic) during(d time.Duration, each func()) (told []string) {
	c.t.Helper()
	for range d / (15 * time.Second) {
		each()
		told = append(told, c.judge(15*time.Second)...)
	}
	return told
}

func (c *clinic) active(name string) bool {
	c.t.Helper()
	s, err := c.m.Sample(c.now)
	require.NoError(c.t, err)
	return s.Sum("alert_active", metrics.Label{Name: "alert", Value: name}) == 1
}

// TestRulesRaiseAndResolve: each rule as it is, raised by the metrics that it is about, and resolved; and what looks like it and isn't.
func TestRulesRaiseAndResolve(t *testing.T) {
	nothing := func() {}
	count := func(n int, do func()) func() {
		return func() {
			for range n {
				do()
			}
		}
	}
	lag := func(c *clinic, records int64, age time.Duration) { c.m.SetLag("t", 0, records, age) }
	for name, play := range map[string]func(t *testing.T, c *clinic){
		metrics.AlertLagGrowing: func(t *testing.T, c *clinic) {
			n := int64(1_000_000)
			require.Empty(t, c.during(20*time.Minute, func() { n -= 10; lag(c, n, time.Hour) }), "a long lag that is worked off")
			age := time.Duration(0)
			require.Equal(t, []string{"+lag_growing"}, c.during(20*time.Minute, func() { age += 15 * time.Second; lag(c, n, age) }))
			require.Equal(t, []string{"-lag_growing"}, c.during(20*time.Minute, func() { n -= 10; lag(c, n, age) }))
			c.m.DropLane("t", 0)
			require.Empty(t, c.during(time.Hour, nothing))
			require.Empty(t, c.during(4*time.Minute, func() { n += 10; lag(c, n, time.Hour) }), "taken over from another worker")
		},
		metrics.AlertFlushFailing: func(t *testing.T, c *clinic) {
			require.Empty(t, c.during(time.Minute, nothing))
			require.Empty(t, c.during(15*time.Second, count(3, c.m.FlushRetries.WithLabelValues("transient").Inc)))
			require.Equal(t, []string{"+flush_failing"}, c.during(15*time.Second, count(1, c.m.FlushRetries.WithLabelValues("fatal").Inc)))
			require.Equal(t, []string{"-flush_failing"}, c.during(6*time.Minute, nothing))
			require.Empty(t, c.during(time.Hour, count(1, func() {
				if c.now.Minute()%4 == 0 && c.now.Second() == 0 {
					c.m.FlushRetries.WithLabelValues("transient").Inc()
				}
			})), "one now and then")
			for _, class := range []string{"row", "no_partition"} {
				require.Empty(t, c.during(time.Minute, c.m.FlushRetries.WithLabelValues(class).Inc), "the next attempt mends it")
			}
		},
		metrics.AlertLaneHalted: func(t *testing.T, c *clinic) {
			c.m.LanesHalted.Set(2)
			n := c.look(15 * time.Second)
			require.Len(t, n, 1)
			require.EqualValues(t, 2, n[0].Value)
			c.m.LanesHalted.Set(1)
			require.Empty(t, c.judge(15*time.Second))
			c.m.LanesHalted.Set(0)
			require.Equal(t, []string{"-lane_halted"}, c.judge(15*time.Second))
		},
		metrics.AlertSlowQueries: func(t *testing.T, c *clinic) {
			require.Equal(t, []string{"+slow_queries"}, c.during(5*time.Minute, count(1, c.m.SlowQueries.WithLabelValues("page").Inc)))
			require.Equal(t, []string{"-slow_queries"}, c.during(5*time.Minute, nothing))
		},
		metrics.AlertLowHitRatio: func(t *testing.T, c *clinic) {
			gets := func(result string) func() { return count(10, c.m.QueryCacheRequests.WithLabelValues(result).Inc) }
			require.Empty(t, c.during(2*time.Hour, gets("error")), "errors are no gets")
			require.Empty(t, c.during(2*time.Hour, gets("shared")), "nor is what shares a get")
			require.Empty(t, c.during(14*time.Minute, gets("miss")))
			require.Equal(t, []string{"+low_hit_ratio"}, c.during(10*time.Minute, gets("miss")))
			require.Equal(t, []string{"-low_hit_ratio"}, c.during(10*time.Minute, gets("hit")))
			require.Empty(t, c.during(2*time.Hour, func() {
				if c.now.Minute()%5 == 0 && c.now.Second() == 0 {
					gets("miss")()
				}
			}), "too few to say anything")
		},
		metrics.AlertPoolStarved: func(t *testing.T, c *clinic) {
			c.m.PoolWaiting.Set(2)
			require.Empty(t, c.judge(15*time.Second))
			c.m.PoolWaiting.Set(0)
			require.Empty(t, c.during(3*time.Minute, nothing), "for a moment")
			c.m.PoolWaiting.Set(2)
			require.Equal(t, []string{"+pool_starved"}, c.during(3*time.Minute, nothing))
			c.m.PoolWaiting.Set(0)
			require.Equal(t, []string{"-pool_starved"}, c.during(3*time.Minute, nothing))
		},
		metrics.AlertConnectionFailures: func(t *testing.T, c *clinic) {
			require.Empty(t, c.during(30*time.Second, c.m.PoolFailures.Inc))
			require.Equal(t, []string{"+connection_failures"}, c.during(30*time.Second, c.m.KafkaConnectFailures.Inc))
			require.Equal(t, []string{"-connection_failures"}, c.during(6*time.Minute, nothing))
		},
		metrics.AlertPartitionsFuture: func(t *testing.T, c *clinic) {
			require.Empty(t, c.judge(time.Minute), "not looked at yet")
			c.m.PartitionsReadyUntil.Set(1e9)
			c.m.PartitionsAhead.Set(2)
			require.Equal(t, []string{"-partitions_future"}, c.judge(time.Minute), "whoever raised it before")
			c.m.PartitionsAhead.Set(1)
			require.Empty(t, c.during(11*time.Minute, nothing), "an interval has begun, and the leader makes a round every ten minutes")
			c.m.PartitionsAhead.Set(2)
			require.Empty(t, c.judge(15*time.Second))
			c.m.PartitionsAhead.Set(1)
			require.Equal(t, []string{"+partitions_future"}, c.during(16*time.Minute, nothing))
			c.m.PartitionsAhead.Set(6)
			require.Equal(t, []string{"-partitions_future"}, c.judge(15*time.Second))
		},
		metrics.AlertMaintenanceStale: func(t *testing.T, c *clinic) {
			require.Empty(t, c.during(70*time.Minute, nothing))
			require.Equal(t, []string{"+maintenance_stale"}, c.during(15*time.Second, nothing))
			c.m.MaintenanceLastSuccess.Set(float64(c.now.Unix()))
			require.Equal(t, []string{"-maintenance_stale"}, c.judge(15*time.Second))
			c.m.MaintenanceLastSuccess.Set(float64(c.now.Add(time.Hour).Unix()))
			require.Empty(t, c.judge(15*time.Second), "a clock ahead of ours")
		},
		metrics.AlertQuarantineRising: func(t *testing.T, c *clinic) {
			require.Empty(t, c.during(15*time.Second, count(10, c.m.Quarantined.WithLabelValues("empty").Inc)))
			require.Equal(t, []string{"+quarantine_rising"}, c.during(15*time.Second, c.m.Quarantined.WithLabelValues("too_deep").Inc))
			require.Equal(t, []string{"-quarantine_rising"}, c.during(16*time.Minute, nothing))
		},
		metrics.AlertHashMismatches: func(t *testing.T, c *clinic) {
			require.Empty(t, c.during(15*time.Second, c.m.Quarantined.WithLabelValues("signature_mismatch").Inc))
			require.Equal(t, []string{"+hash_mismatches"}, c.during(15*time.Second, c.m.Quarantined.WithLabelValues("hash_mismatch").Inc))
			require.Equal(t, []string{"-hash_mismatches"}, c.during(16*time.Minute, nothing))
		},
		metrics.AlertGaps: func(t *testing.T, c *clinic) {
			require.Equal(t, []string{"+gaps"}, c.during(15*time.Second, c.m.Gaps.Inc))
			require.Empty(t, c.during(10*time.Minute, nothing))
			require.Equal(t, []string{"-gaps"}, c.during(6*time.Minute, nothing))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t, "{maintenance_stale: {off: "+strconv.FormatBool(name != metrics.AlertMaintenanceStale)+"}}")
			play(t, c)
			require.False(t, c.active(name))
		})
	}
	require.Len(t, metrics.Rules(), 12, "and a play for each")
}

// TestRulesFile: what it says acts, and what it says wrong is told with its line.
func TestRulesFile(t *testing.T) {
	rules, err := metrics.ParseRules([]byte("# ours\nlag_growing:\n  threshold: 120.5\n  window: 10m\n  for: 0s\n  cool_down: 1h\ngaps: {off: true}\nflush_failing:\n"), metrics.Rules())
	require.NoError(t, err)
	want := metrics.Rules()
	require.Equal(t, []any{120.5, 10 * time.Minute, time.Duration(0), time.Hour}, []any{rules[0].Threshold, rules[0].Window, rules[0].For, rules[0].CoolDown})
	require.True(t, rules[11].Off)
	require.Equal(t, want[1].Threshold, rules[1].Threshold)
	require.False(t, want[11].Off, "the table stays as it is")
	for _, nothing := range []string{"", "\n# nothing\n", "---\n", "{}"} {
		rules, err := metrics.ParseRules([]byte(nothing), metrics.Rules())
		require.NoError(t, err, "%q", nothing)
		require.Len(t, rules, len(want))
	}
	for file, faults := range map[string][]string{
		"lag_groing: {for: 1m}":                            {`line 1: "lag_groing" is no alert: there are lag_growing, flush_failing,`},
		"gaps:\n  threshhold: 1":                           {`line 2: "threshhold" is nothing that a rule has`},
		"gaps:\n\n  threshold: many\n  for: 5\n  off: yes": {`line 3: threshold "many" is not a number`, `line 4: for "5" is not a duration`, `line 5: off "yes" is neither true nor false`},
		"gaps: {threshold: -1}":                            {"line 1: threshold"},
		"gaps: {threshold: .nan}":                          {"line 1: threshold"},
		"gaps: {threshold: NaN}":                           {"line 1: threshold"},
		"gaps: {threshold: [1]}":                           {"line 1: threshold"},
		"gaps: {cool_down: -1s}":                           {"line 1: cool_down"},
		"gaps: {window: 800h}":                             {"line 1: window"},
		"lane_halted:\n  window: 1m":                       {"line 2: lane_halted has no window"},
		"gaps: {off: true}\ngaps: {off: false}":            {`line 2: "gaps" comes twice`},
		"gaps: {off: true, off: false}":                    {`line 1: "off" comes twice`},
		"- gaps":                                           {"line 1: here a mapping of names of alerts"},
		"gaps: 5":                                          {"line 1: here a mapping of threshold"},
		"gaps: {off: true}\n---\ngaps: {}":                 {"more than one YAML document"},
		"gaps: {":                                          {"line 1"},
		"gaps: {off: *x}":                                  {"x"},
	} {
		_, err := metrics.ParseRules([]byte(file), metrics.Rules())
		var wrong *metrics.RulesError
		require.ErrorAs(t, err, &wrong, "%q", file)
		require.Len(t, wrong.Faults, len(faults), "%q: %s", file, err)
		for i, f := range faults {
			require.Contains(t, wrong.Faults[i].String(), f)
		}
	}
}

// TestRulesOfDeploy: the Prometheus of deploy loads the rules.
func TestRulesOfDeploy(t *testing.T) {
	text, err := os.ReadFile("../deploy/prometheus.yml")
	require.NoError(t, err)
	require.Contains(t, string(text), "rule_files: [prometheus/alerts.yaml]")
	out, err := testkit.PromtoolConfig(t, "../deploy/prometheus.yml")
	require.NoError(t, err, out)
	require.Contains(t, out, "12 rules found")
	text, err = os.ReadFile("../deploy/compose.yaml")
	require.NoError(t, err)
	require.Contains(t, string(text), "./prometheus/alerts.yaml:/etc/prometheus/prometheus/alerts.yaml:ro")
}
