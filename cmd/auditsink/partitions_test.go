package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
	"auditsink/partitions"
)

func partitionsJSON(t *testing.T, s settings, args ...string) (r partitionsReport) {
	t.Helper()
	out := succeed(t, s, append(append([]string{"partitions"}, args...), "--json")...)
	require.NoError(t, json.Unmarshal([]byte(out), &r), out)
	require.NotNil(t, r.Create)
	require.NotNil(t, r.Replace)
	require.NotNil(t, r.Keep)
	return r
}

func stepNames(all []partitions.Step) (names []string) {
	for _, s := range all {
		names = append(names, s.Name)
	}
	return names
}

// TestPartitionsPlanAndApply: a plan changes nothing and a standby answers it; apply needs to be told to execute it.
func TestPartitionsPlanAndApply(t *testing.T) {
	t.Parallel()
	primary := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	databaseURL, err := primary.CreateDatabase(t.Context())
	require.NoError(t, err)
	one := settings{"POSTGRES_URL": databaseURL, "PARTITION_AHEAD": "1", "POOL_RETRY_DELAY": "100ms"}
	four := one.with(settings{"PARTITION_AHEAD": "4"})

	code, _, errs := execute(t, one, "partitions", "plan")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "auditsink migrate up")
	for _, args := range [][]string{{"partitions"}, {"partitions", "plan", "now"}, {"partitions", "plan", "--execute"}, {"partitions", "apply", "--dry"}} {
		code, _, _ := execute(t, one, args...)
		require.Equal(t, 2, code, "%q", args)
	}
	succeed(t, one, "migrate", "up")
	count := func() int64 {
		return number(t, databaseURL, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_log'::regclass`)
	}
	require.EqualValues(t, 2, count())
	require.Regexp(t, `(?m)^dry run, nothing was changed: 0 table partitions to create \(\S.*\); ready until \d{4}-\d{2}-01T00:00:00Z\n$`, succeed(t, one, "partitions", "plan"))

	// The month, by the database's clock: the program's is the same machine's.
	month := func(n int) string {
		return value(t, databaseURL, fmt.Sprintf(`SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '%d months', '"audit_log_"YYYY_MM')`, n))
	}
	planned := partitionsJSON(t, four, "plan")
	require.True(t, planned.DryRun)
	require.Equal(t, []string{month(2), month(3), month(4)}, stepNames(planned.Create))
	require.Empty(t, planned.Replace)
	text := succeed(t, four, "partitions", "plan")
	require.Contains(t, text, planned.Create[0].String()+"\n"+planned.Create[1].String()+"\n"+planned.Create[2].String()+"\n")
	require.Equal(t, text, succeed(t, four, "partitions", "apply"), "a dry run")
	require.Equal(t, planned, partitionsJSON(t, four, "apply"))
	require.EqualValues(t, 2, count(), "nothing was changed")

	standby, err := primary.StartStandby(t.Context(), "second")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	onStandby := four.with(settings{"POSTGRES_URL": standby.URL(mustParse(t, databaseURL).Path[1:])})
	require.Equal(t, text, succeed(t, onStandby, "partitions", "plan"))
	code, out, errs := execute(t, onStandby, "partitions", "apply", "--execute")
	require.Equal(t, 1, code, out)
	require.Contains(t, errs, "read-only")
	require.Contains(t, errs, "AUDITSINK_POSTGRES_URL must name the primary")

	// Something has a name that is wanted: the rest is done, and the exit code tells.
	statement(t, databaseURL, `CREATE VIEW `+month(3)+` AS SELECT 1`)
	for _, args := range [][]string{{"plan"}, {"apply"}} {
		code, out, errs = execute(t, four, append([]string{"partitions"}, args...)...)
		require.Equal(t, 1, code, "%q", args)
		require.Contains(t, out, "2 table partitions to create")
		require.Contains(t, errs, month(3)+" exists and is not a partition of audit_log")
	}
	require.EqualValues(t, 2, count())
	code, out, errs = execute(t, four, "partitions", "apply", "--execute", "--json")
	require.Equal(t, 1, code)
	require.Contains(t, errs, month(3)+" exists")
	var done partitionsReport
	require.NoError(t, json.Unmarshal([]byte(out), &done))
	require.False(t, done.DryRun)
	require.Equal(t, []string{month(2), month(4)}, stepNames(done.Create))
	require.Contains(t, done.Problem, month(3))
	statement(t, databaseURL, `DROP VIEW `+month(3))
	out = succeed(t, four, "partitions", "apply", "--execute")
	require.Regexp(t, `^create partition `+month(3)+` from \S+ to \S+\n(next .*\n)?1 table partitions created; ready until \d{4}-\d{2}-01T00:00:00Z\n$`, out)
	require.EqualValues(t, 5, count())
	require.Contains(t, succeed(t, four, "partitions", "apply", "--execute"), "0 table partitions created")

	// From months to days: what is far ahead and empty goes, what holds rows stays, what is near stays whole.
	days := four.with(settings{"PARTITION_INTERVAL": "day", "PARTITION_AHEAD": "2"})
	statement(t, databaseURL, `INSERT INTO audit_log (timestamp, action, status) VALUES (date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '3 months 1 day', 'a', 'success')`)
	planned = partitionsJSON(t, days, "plan")
	require.Empty(t, planned.Create, "a month has the days of now")
	require.Equal(t, month(3), planned.Keep[0].Name)
	require.Len(t, planned.Keep, 1)
	require.Subset(t, []string{month(1), month(2), month(4)}, boundsNames(planned.Replace))
	require.Subset(t, boundsNames(planned.Replace), []string{month(2), month(4)})
	gone := len(planned.Replace)
	require.Contains(t, succeed(t, days, "partitions", "apply"), "the leader removes "+month(4)+" from ")
	text = succeed(t, days, "partitions", "apply", "--execute")
	require.Contains(t, text, "partition "+month(4)+": dropped, 0 rows")
	require.Contains(t, text, month(3)+" from ")
	require.Contains(t, text, "it holds rows")
	require.EqualValues(t, 5-gone, count())
}

// TestPartitionsRetire: what has expired goes when an operator says so, after its grace period, and a worker leads before and after.
func TestPartitionsRetire(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 18)
	s := settings{"POSTGRES_URL": databaseURL, "RETENTION_GRACE_DAYS": "0"}
	succeed(t, s, "migrate", "up")
	statement(t, databaseURL, `SELECT create_audit_log_partition('audit_log_2015_02', '2015-02-01 00:00Z', '2015-03-01 00:00Z');
		INSERT INTO audit_log (timestamp, action, status) VALUES ('2015-02-03 00:00Z', 'a', 'success')`)
	there := func() int64 {
		return number(t, databaseURL, `SELECT count(*) FROM pg_class WHERE relname = 'audit_log_2015_02'`)
	}

	for _, args := range [][]string{{"plan"}, {"apply"}, {"apply", "--execute"}} {
		r := partitionsJSON(t, s, args...)
		require.Equal(t, "audit_log_2015_02", r.Retire[0].Name, "%q", args)
		require.Len(t, r.Retire, 1)
		require.Empty(t, r.Done)
		require.False(t, r.Enforced)
	}
	require.Contains(t, succeed(t, s, "partitions", "apply", "--retire"), "the leader retires audit_log_2015_02 from ", "a dry run")
	require.EqualValues(t, 1, there())

	statement(t, databaseURL, `UPDATE audit_leader SET term = 7, holder = 'a worker', expires_at = now() + interval '1 hour'`)
	r := partitionsJSON(t, s, "apply", "--execute", "--retire")
	require.Len(t, r.Done, 3, "%v", r.Done)
	require.Equal(t, []string{"verified", "detached", "dropped"}, []string{r.Done[0].What, r.Done[1].What, r.Done[2].What})
	require.Empty(t, r.Retire)
	require.Zero(t, there())
	require.EqualValues(t, 8, number(t, databaseURL, `SELECT term FROM audit_partition_event WHERE kind = 'drop' AND state = 'done' AND row_count = 1`))
	require.EqualValues(t, 1, number(t, databaseURL, `SELECT count(*) FROM audit_leader WHERE term = 8 AND expires_at < now()`), "handed over")
}

func boundsNames(all []partitions.Bounds) (names []string) {
	for _, b := range all {
		names = append(names, b.Name)
	}
	return names
}

// TestTimeZones: partitions are UTC's, whatever the time zone of the process, of the database's sessions, and the style of its dates. At any time it is another day
// than UTC's in one of these zones.
func TestTimeZones(t *testing.T) {
	t.Parallel()
	for i, zone := range []string{"Pacific/Kiritimati", "Etc/GMT+12"} {
		t.Run(zone, func(t *testing.T) {
			databaseURL := testkit.Postgres(t, []int{15, 18}[i])
			name := strings.TrimPrefix(mustParse(t, databaseURL).Path, "/")
			statement(t, databaseURL, `ALTER DATABASE `+name+` SET timezone = '`+zone+`'`)
			statement(t, databaseURL, `ALTER DATABASE `+name+` SET datestyle = 'German'`)
			s := settings{"POSTGRES_URL": databaseURL, "POSTGRES_PREPARED": "false", "PARTITION_INTERVAL": "day", "PARTITION_AHEAD": "40"}
			path, err := binary()
			require.NoError(t, err)
			auditsink := func(args ...string) string {
				cmd := exec.CommandContext(t.Context(), path, args...)
				cmd.Env = []string{"TZ=" + zone, "PGTZ=" + zone}
				for k, v := range s {
					cmd.Env = append(cmd.Env, "AUDITSINK_"+k+"="+v)
				}
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s", out)
				return string(out)
			}
			today := func() string {
				return value(t, databaseURL, `SELECT to_char(now() AT TIME ZONE 'UTC', '"audit_log_"YYYY_MM_DD')`)
			}
			before := today()
			auditsink("migrate", "up")
			created := column[string](t, databaseURL, `SELECT partition_name FROM audit_log_partition_bounds() ORDER BY lower_bound`)
			require.Len(t, created, 41)
			require.Contains(t, []string{before, today()}, created[0])
			requireDays := func() {
				require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_log_partition_bounds()
					WHERE partition_name <> to_char(lower_bound AT TIME ZONE 'UTC', '"audit_log_"YYYY_MM_DD')
					OR lower_bound AT TIME ZONE 'UTC' <> date_trunc('day', lower_bound AT TIME ZONE 'UTC') OR upper_bound - lower_bound <> interval '24 hours'`))
			}
			requireDays()

			s["PARTITION_AHEAD"] = "43" // over midnight it is one more
			var planned partitionsReport
			require.NoError(t, json.Unmarshal([]byte(auditsink("partitions", "plan", "--json")), &planned))
			require.GreaterOrEqual(t, len(planned.Create), 3)
			require.Equal(t, planned.Create[0].From, planned.ReadyUntil)
			require.Contains(t, auditsink("partitions", "apply", "--execute"), planned.Create[0].String())
			require.GreaterOrEqual(t, number(t, databaseURL, `SELECT count(*) FROM audit_log_partition_bounds()`), int64(44))
			requireDays()
		})
	}
}

// TestWildTimestamps: events dated in year 1, 2097 or 52217, and events in records that are themselves dated so, end in quarantine. Good events around them
// are stored, and no table partition is created, by the worker or by a redrive.
func TestWildTimestamps(t *testing.T) {
	t.Parallel()
	broker := testkit.Kafka(t)
	now := time.Now().UTC()
	event := func(timestamp string) []byte {
		return fmt.Appendf(nil, `{"timestamp":%q,"action":"a","status":"success"}`, timestamp)
	}
	good := event(now.Format(time.RFC3339))
	year := func(y int) time.Time { return time.Date(y, 3, 1, 12, 0, 0, 0, time.UTC) }
	const rule, unread, table = "timestamp_out_of_range", "invalid_timestamp", "rejected_by_database"
	records := []struct {
		at    time.Time // the record's own
		value []byte
		want  string // the reason of its quarantine; empty: a row
	}{
		{now, good, ""},
		{now, event("0001-01-01T00:00:00Z"), rule},
		{now, event("0000-01-01T00:00:00Z"), rule},
		{now, event("1970-01-01T00:00:00Z"), rule},
		{now, event("2097-03-01T12:00:00Z"), rule},
		{now, event("9999-12-31T23:59:59.999999Z"), rule},
		{now, event("52217-03-01T12:00:00Z"), unread},
		{now, event("+052217-03-01T12:00:00Z"), unread},
		{now, []byte(`{"timestamp":1585699200000000,"action":"a","status":"success"}`), "invalid_type"}, // microseconds, read as milliseconds: year 52217
		{now, good, ""},
		{year(52217), event("52217-03-01T12:00:00Z"), unread},
		{year(52217), event("2097-03-01T12:00:00Z"), rule},
		{year(52217), good, ""}, // only the record's clock is wrong
		{year(2097), event("2097-03-01T12:00:00Z"), rule},
		{year(2097), event("0001-01-01T00:00:00Z"), rule},
		{year(2097), good, ""},
		{year(1971), event("1971-03-01T12:00:00Z"), table}, // they agree with each other, but not with the horizon as of today
		{year(1971), event("2097-03-01T12:00:00Z"), rule},
		{year(1971), good, rule},
		{now, good, ""},
	}
	for _, version := range []int{15, 18} {
		for _, interval := range []string{"month", "day"} {
			t.Run(fmt.Sprintf("postgres%d, %s", version, interval), func(t *testing.T) {
				databaseURL, topic := testkit.Postgres(t, version), testkit.Name(t)
				s := workerSettings(broker, topic, databaseURL).with(settings{"PARTITION_INTERVAL": interval})
				succeed(t, s, "migrate", "up")
				tables := func() []string {
					return column[string](t, databaseURL, `SELECT partition_name FROM audit_log_partition_bounds()`)
				}
				before := tables()
				broker.CreateTopic(t, topic, 1, map[string]string{"message.timestamp.after.max.ms": "9223372036854775807"})
				client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.DefaultProduceTopic(topic))
				require.NoError(t, err)
				defer client.Close()
				var rows []int64
				reasons := []string{}
				for offset, r := range records {
					require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Value: r.value, Timestamp: r.at}).FirstErr())
					if r.want == "" {
						rows = append(rows, int64(offset))
					} else {
						reasons = append(reasons, fmt.Sprintf("%d %s", offset, r.want))
					}
				}
				require.Equal(t, int64(len(records)), int64(len(rows)+len(reasons)))

				p := start(t, s, "run")
				eventually(t, "all are taken", func() bool {
					return number(t, databaseURL, `SELECT coalesce(sum(next_offset), 0) FROM audit_lane`) == int64(len(records))
				})
				p.stop(t)
				quarantined := func() []string {
					return column[string](t, databaseURL, `SELECT lane_offset || ' ' || reason FROM audit_quarantine WHERE state = 'new' ORDER BY lane_offset`)
				}
				require.Equal(t, rows, column[int64](t, databaseURL, `SELECT lane_offset FROM audit_log ORDER BY lane_offset`))
				require.Equal(t, reasons, quarantined())
				require.Equal(t, before, tables())

				r := redriveJSON(t, s, "--all")
				require.Equal(t, []int{len(reasons), 0, len(reasons)}, []int{r.Taken, r.Redriven, r.Quarantined})
				require.Equal(t, reasons, quarantined())
				require.Equal(t, before, tables())
			})
		}
	}
}
