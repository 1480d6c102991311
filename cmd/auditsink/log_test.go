package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/testkit"
)

// TestLogFlood: of ten thousand lines that are alike few are logged, in either format and at any level, and how many were left out is told exactly.
func TestLogFlood(t *testing.T) {
	const lines = 10_000
	for _, format := range []string{"json", "console"} {
		t.Run(format, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "stderr")
			file, err := os.Create(path)
			require.NoError(t, err)
			defer file.Close() //nolint:errcheck // it is read below
			was := os.Stderr
			os.Stderr = file
			cfg := config.Default()
			cfg.LogFormat = format
			log, _, err := newLogger(cfg)
			os.Stderr = was
			require.NoError(t, err)
			log.Info("once")
			for i := range lines {
				log.Info("alike", zap.Int("n", i))
				log.Error("alike", zap.Int("n", i), zap.Error(errors.New("it failed")))
			}
			count := func() (logged, told int) {
				text, err := os.ReadFile(path)
				require.NoError(t, err)
				for line := range strings.Lines(string(text)) {
					if m := regexp.MustCompile(`left out.*"lines": ?(\d+)`).FindStringSubmatch(line); m != nil {
						n, err := strconv.Atoi(m[1])
						require.NoError(t, err)
						told += n
						require.Contains(t, line, "alike")
					} else if strings.Contains(line, "alike") {
						logged++
					}
				}
				require.Equal(t, 1, strings.Count(string(text), "once"))
				return logged, told
			}
			eventually(t, "what was left out is told", func() bool { logged, told := count(); return logged+told == 2*lines })
			logged, _ := count()
			require.Less(t, logged, lines/10, "thinned out")
			require.GreaterOrEqual(t, logged, 2*floodFirst)
		})
	}
}

// TestNoContent: nothing of an event is in the log, the metrics or the health of a worker at its most talkative, whatever becomes of the event: stored, quarantined,
// refused by the database, slow to be read, the reason of an alert.
func TestNoContent(t *testing.T) {
	t.Parallel()
	broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, 18), testkit.Name(t)
	broker.CreateTopic(t, topic, 2, nil)
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(rules, []byte(quickRules), 0o600))
	s := workerSettings(broker, topic, databaseURL).with(settings{
		"LOG_LEVEL": "debug", "ALERT_INTERVAL": "200ms", "ALERT_RULES_FILE": rules, "SLOW_QUERY": "1ms", "EVENT_SIGNATURE_KEY": "k3y", "EVENT_MAX_BYTES": "4KiB",
		"REPORT_INTERVAL": "1s", "REDIS_URL": testkit.OwnRedis(t).URL(),
	})
	succeed(t, s, "migrate", "up")
	// The database refuses two of them, and quotes them in all that it says.
	statement(t, databaseURL, `ALTER TABLE audit_log ADD CONSTRAINT odd CHECK (outcome_description NOT LIKE '%refused')`)
	statement(t, databaseURL, `CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.ttl LIKE '%refused' THEN RAISE EXCEPTION 'refused: %', NEW USING ERRCODE = '22000', DETAIL = NEW.action, HINT = NEW.details; END IF; RETURN NEW; END $$;
		CREATE TRIGGER odd BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION odd()`)

	const mark = "MARK"
	now := time.Now().UTC().Format(time.RFC3339)
	event := func(more string) string {
		fields := ""
		for _, f := range []string{"principalId", "organizationId", "targetResourceType", "targetResourceId", "correlationId", "unknownMember"} {
			fields += fmt.Sprintf(`,%q:"%s-%s"`, f, mark, f)
		}
		return fmt.Sprintf(`{"timestamp":%q,"action":"%s-action","MARKname":{"%s-key":["%s-value"]}%s%s}`, now, mark, mark, mark, fields, more)
	}
	const success = `,"status":"success"`
	broken := []string{
		event(success + `,"outcomeDescription":"MARK-refused"`), event(success + `,"ttl":"MARK-refused"`), // by the database
		event(`,"status":"MARK-status"`), event(success + `,"hash":"` + strings.Repeat("MARK", 16) + `"`), event(success + `,"hash":"` + strings.Repeat("0", 64) + `"`),
		event(success + `,"signature":"MARK-signature"`), event(success + `,"processingLatency":"MARK"`), event(success + `,"processingLatency":1e999`),
		event(success + `,"action":"MARK-again"`), event(success + `,"retentionPolicy":"` + strings.Repeat("MARK", 100) + `"`), event(success + `,"archivedAt":"MARK"`),
		event(success+`,"dataClassification":"MARK"`) + "MARK", `"MARK-` + strings.Repeat("MARK", 2000) + `"`, `"MARK"`, "MARK", "MARK\xff", `{"MARK":"\u0000"}`,
		event(success + `,"MARK":` + strings.Repeat("[", 40) + `"MARK"` + strings.Repeat("]", 40)), `{"timestamp":"MARK","action":"MARK","status":"success"}`,
		`{"timestamp":"1999-01-01T00:00:00Z","action":"MARK","status":"success"}`,
	}
	w := start(t, s, "run")
	eventually(t, "it has its lanes", func() bool { return w.metric(t, "lanes_owned") == 2 })
	publishValues(t, broker, topic, event(success), event(success+`,"outcomeDescription":"MARK-outcome"`))
	publishValues(t, broker, topic, broken...)
	eventually(t, "all are where they belong", func() bool {
		return w.metric(t, "quarantined_total") == float64(len(broken)) && w.metric(t, "rows_inserted_total") == 2
	})
	require.EqualValues(t, 2, w.metric(t, `quarantined_total{reason="rejected_by_database"}`))
	for _, path := range []string{"/v1/events?principalId=MARK-principalId", "/v1/events?limit=1&action=MARK-action", "/v1/events?organizationId=MARK-organizationId&format=csv", "/v1/events?after=MARK", "/v1/events/MARK"} {
		ask(t, w, path)
	}
	w.says(t, `"(alert: records go to quarantine)"`)
	w.says(t, `"(alert: events came with a hash that isn't theirs)"`)
	w.says(t, `"msg":"([^"]*slow[^"]*)"`)
	for _, path := range []string{"/metrics", "/health", "/readyz"} {
		_, body := w.get(t, path)
		require.NotContains(t, body, mark, path)
	}
	w.stop(t)
	require.NotContains(t, w.errs.String(), mark)
	require.NotContains(t, w.errs.String(), "1999-01-01")
}
