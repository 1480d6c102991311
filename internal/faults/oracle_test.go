package faults

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
)

// alterations changes each column of a row that holds an event. A column that isn't here is not the event's, see TestPlanted.
var alterations = map[string]string{
	"timestamp":            `timestamp + interval '1 microsecond'`,
	"timestamp_text":       `coalesce(timestamp_text, '') || ' '`,
	"ttl":                  `coalesce(ttl, '') || 'x'`,
	"principal_id":         `coalesce(principal_id, '') || 'x'`,
	"organization_id":      `CASE WHEN organization_id IS NULL THEN '' END`,
	"action":               `upper(action) || 'x'`,
	"target_resource_type": `coalesce(target_resource_type, '') || 'x'`,
	"target_resource_id":   `coalesce(target_resource_id, '') || 'x'`,
	"status":               `CASE status WHEN 'success' THEN 'failure' ELSE 'success' END`,
	"outcome_description":  `coalesce(outcome_description, '') || 'x'`,
	"hash":                 `reverse(hash)`,
	"hash_algorithm":       `NULL`,
	"event_version":        `event_version || '0'`,
	"correlation_id":       `correlation_id || 'x'`,
	"data_classification":  `CASE data_classification WHEN 'PHI' THEN 'PUBLIC' ELSE 'PHI' END`,
	"retention_policy":     `retention_policy || 'x'`,
	"archived_at":          `coalesce(archived_at, now()) + interval '1 microsecond'`,
	"processing_latency":   `NULL`,
	"details":              `coalesce(details, '{}') || '{"planted": 1}'`,
}

// notTheEvents are the columns that say where and when a row was stored; they have plants of their own, as far as they can be known.
var notTheEvents = []string{"id", "recorded_at", "lane_id", "lane_offset"}

// plants are violations, and what the oracle must find of each.
var plants = []struct {
	name, sql string
	want      []kind
}{
	{"nothing", `SELECT 1`, nil},
	{"a row deleted", `DELETE FROM audit_log WHERE id = (SELECT id FROM audit_log ORDER BY id OFFSET 5 LIMIT 1)`, []kind{missing}},
	{"a lane's last row deleted", `DELETE FROM audit_log WHERE id = (SELECT max(id) FROM audit_log)`, []kind{missing}},
	{"all rows deleted", `DELETE FROM audit_log`, []kind{missing}},
	{"a row doubled", copyWith(`jsonb_build_object('id', (SELECT max(id) + 1 FROM audit_log))`), []kind{doubled}},
	{
		"an event stored again at another offset", `
		DELETE FROM audit_log WHERE lane_id = 1 AND lane_offset = (SELECT max(lane_offset) FROM audit_log WHERE lane_id = 1);
		` + copyWith(`jsonb_build_object('id', (SELECT max(id) + 1 FROM audit_log), 'lane_id', 1, 'lane_offset', (SELECT max(lane_offset) + 1 FROM audit_log WHERE lane_id = 1))`),
		[]kind{doubled, invented, missing},
	},
	{
		"a row beside its quarantined record",
		copyWith(`jsonb_build_object('id', (SELECT max(id) + 1 FROM audit_log), 'lane_id', q.lane_id, 'lane_offset', q.lane_offset) FROM audit_quarantine q WHERE q.id = 1`),
		[]kind{doubled, invented},
	},
	{
		"two rows' offsets swapped", `
		UPDATE audit_log l SET lane_offset = a.m - (lane_offset - a.m) + 1 FROM (SELECT min(lane_offset) AS m FROM audit_log b WHERE lane_id = 1 AND EXISTS (
			SELECT FROM audit_log c WHERE c.lane_id = 1 AND c.lane_offset = b.lane_offset + 1)) a WHERE lane_id = 1 AND lane_offset IN (a.m, a.m + 1)`,
		[]kind{invented, order},
	},
	{"ids out of order", `UPDATE audit_log SET id = (SELECT max(id) + 1 FROM audit_log) WHERE id = (SELECT min(id) FROM audit_log)`, []kind{order}},
	{"a row without a place", copyWith(`jsonb_build_object('id', (SELECT max(id) + 1 FROM audit_log), 'lane_id', NULL)`), []kind{invented}},
	{"a row of no lane", copyWith(`jsonb_build_object('id', (SELECT max(id) + 1 FROM audit_log), 'lane_id', 99)`), []kind{invented}},
	{
		"a row beyond the log", copyWith(`jsonb_build_object('id', (SELECT max(id) + 1 FROM audit_log), 'lane_offset', 1000000)`),
		[]kind{invented, position},
	},
	{"a row moved to another lane", `UPDATE audit_log SET lane_id = lane_id % 4 + 1 WHERE id = (SELECT id FROM audit_log ORDER BY id OFFSET 5 LIMIT 1)`, nil}, // see below
	{"a quarantined record dropped", `DELETE FROM audit_quarantine WHERE id = 1`, []kind{missing}},
	{"a quarantined record doubled", `INSERT INTO audit_quarantine (lane_id, lane_offset, record_timestamp, key, value, headers, reason)
		SELECT lane_id, lane_offset, record_timestamp, key, value, headers, reason FROM audit_quarantine WHERE id = 1`, []kind{doubled}},
	{"a quarantined record invented", `INSERT INTO audit_quarantine (lane_id, lane_offset, reason) VALUES (1, 1000000, 'empty')`, []kind{invented, position}},
	{"a quarantined record's reason", `UPDATE audit_quarantine SET reason = 'hash_mismatch' || reason WHERE id = 1`, []kind{reason}},
	{"a quarantined record's value", `UPDATE audit_quarantine SET value = coalesce(value, '') || '\x20' WHERE id = 1`, []kind{bytesOf}},
	{"a quarantined value from NULL to nothing", `UPDATE audit_quarantine SET value = CASE WHEN value IS NULL THEN ''::bytea END WHERE reason = 'empty'`, []kind{bytesOf}},
	{"a quarantined record's key", `UPDATE audit_quarantine SET key = CASE WHEN key IS NULL THEN ''::bytea END WHERE id = 1`, []kind{bytesOf}},
	{"a quarantined record's headers", `UPDATE audit_quarantine SET headers = coalesce(headers, '[]') || '[["x", "eA=="]]' WHERE id = 1`, []kind{bytesOf}},
	{"a quarantined record's timestamp", `UPDATE audit_quarantine SET record_timestamp = record_timestamp + interval '1 ms' WHERE id = 1`, []kind{bytesOf}},
	{"a record said to be redriven, and no row", `UPDATE audit_quarantine SET state = 'redriven' WHERE id = 1`, []kind{missing}},
	{"a position moved back", `UPDATE audit_lane SET next_offset = next_offset - 1 WHERE lane_id = 1`, []kind{offset, position}},
	{"a position moved forward", `UPDATE audit_lane SET next_offset = next_offset + 1 WHERE lane_id = 1`, []kind{offset, position}},
	{"a lane halted", `UPDATE audit_lane SET state = 'halted' WHERE lane_id = 1`, []kind{halted}},
	{"a lane forgotten", `DELETE FROM audit_lane WHERE lane_id = 1`, []kind{invented, missing}},
	{"a gap", `INSERT INTO audit_gap (lane_id, kind, from_offset, to_offset) VALUES (1, 'retention', 1, 3)`, []kind{gap}},
}

func copyWith(changes string) string {
	changed, rest, _ := strings.Cut(changes, " FROM audit_quarantine")
	if rest != "" {
		return `INSERT INTO audit_log SELECT r.* FROM audit_quarantine q, audit_log l, jsonb_populate_record(l, ` + changed + `) r
			WHERE l.id = (SELECT id FROM audit_log ORDER BY id OFFSET 5 LIMIT 1) AND` + strings.Replace(rest, " q WHERE", "", 1)
	}
	return `INSERT INTO audit_log SELECT r.* FROM audit_log l, jsonb_populate_record(l, ` + changed + `) r WHERE l.id = (SELECT id FROM audit_log ORDER BY id OFFSET 5 LIMIT 1)`
}

// TestPlanted: what the oracle has to find it finds. Violations are planted in the tables of a good run, and each must be told by its kind.
func TestPlanted(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newSuite(t), seedOf(t), t.Name(), 0)
	e.build(world{})
	l := e.produce(loadOptions{rate: 1000, limit: 1000, recipe: recipe{poison: 0.1, late: 0.05}})
	e.worker()
	<-l.done
	e.clean()
	log, err := readLog(t.Context(), e.seeds, e.topic, e.topic, true)
	require.NoError(t, err)
	// planted judges the tables with a violation in them, which goes again.
	planted := func(t *testing.T, sql string, logs ...*topicLog) *findings {
		tx, err := e.db.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it undoes what was planted
		_, err = tx.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
		found, err := judge(t.Context(), tx, e.ledgers, logs, allowance{})
		require.NoError(t, err)
		return found
	}
	for _, p := range plants {
		t.Run(p.name, func(t *testing.T) {
			found := planted(t, p.sql, log)
			if p.name == "a row moved to another lane" { // what is at that offset there depends on the run
				require.Contains(t, found.counts, invented, found)
				return
			}
			require.Equal(t, p.want, found.kinds(), found)
		})
	}
	t.Run("each column", func(t *testing.T) {
		rows, err := e.db.Query(t.Context(), `SELECT attname::text FROM pg_attribute WHERE attrelid = 'audit_log'::regclass AND attnum > 0 AND NOT attisdropped`)
		require.NoError(t, err)
		columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		for _, column := range columns {
			if slices.Contains(notTheEvents, column) {
				continue
			}
			require.Contains(t, alterations, column, "the oracle doesn't know a column of audit_log")
			found := planted(t, `UPDATE audit_log SET `+column+` = `+alterations[column]+` WHERE id = (SELECT id FROM audit_log ORDER BY id OFFSET 5 LIMIT 1)`, log)
			require.Equal(t, []kind{altered}, found.kinds(), "%s: %s", column, found)
			require.Contains(t, found.String(), column)
		}
	})
	t.Run("Kafka's offsets", func(t *testing.T) {
		for _, by := range []int64{1, -1} {
			wrong := kadm.Offsets{}
			wrong.AddOffset(e.topic, 0, log.lanes[0].committed+by, -1)
			require.NoError(t, e.admin.CommitAllOffsets(t.Context(), e.topic, wrong))
			again, err := readLog(t.Context(), e.seeds, e.topic, e.topic, true)
			require.NoError(t, err)
			require.Equal(t, []kind{offset}, planted(t, `SELECT 1`, again).kinds())
		}
	})
	t.Run("for a while", func(t *testing.T) {
		w := startWatch(t.Context(), e.db, e.admin, e.topic, false)
		seen := func(k kind) func() bool {
			return func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.found.counts[k] > 0
			}
		}
		e.eventually("the watch has looked", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.last) == int(e.lanes)
		})
		wrong := kadm.Offsets{}
		wrong.AddOffset(e.topic, 0, log.lanes[0].committed+1, -1)
		require.NoError(t, e.admin.CommitAllOffsets(t.Context(), e.topic, wrong))
		e.eventually("an offset ahead is seen", seen(offset))
		e.statement(`UPDATE audit_lane SET next_offset = next_offset - 1 WHERE partition = 1`)
		e.eventually("a position that went back is seen", seen(position))
		w.end()
	})
	t.Run("an acknowledged record gone from the log", func(t *testing.T) {
		for at := range log.lanes[0].records {
			delete(log.lanes[0].records, at)
			break
		}
		require.Contains(t, planted(t, `SELECT 1`, log).kinds(), brokers)
	})
}
