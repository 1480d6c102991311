package query_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/indexes"
	"auditsink/internal/query"
)

// row is a stored event as the model knows it.
type row struct {
	ID                                                            int64
	Timestamp                                                     time.Time
	Principal, Organization, Action, Status, Hash                 string
	ResourceType, ResourceID, Correlation, Classification, Policy string
	Archived                                                      *time.Time
}

// newModelBed is a database of few rows in many table partitions, of months and of days, with many of the same instant, also at and beside the borders; every value occurs often
// enough for any two conditions to have something in common. Each row is in the model too.
func newModelBed(t *testing.T, version int) (*bed, []row) {
	return modelBedOf(t, version, modelSpan{"2022-01-01", "2023-11-30", "102 hours"}, func(*bed) {})
}

// modelSpan is what a model's table partitions are of: months from the first on, and days of September 2023 and after until the last. The rows' instants are so far apart.
type modelSpan struct{ first, last, apart string }

// modelBedOf is newModelBed of a span. What asks many questions is done in a third of the time with a few table partitions of each kind.
func modelBedOf(t *testing.T, version int, span modelSpan, prepare func(*bed)) (*bed, []row) {
	b := newBed(t, version)
	prepare(b)
	b.exec(`SELECT create_audit_log_partition('audit_log_m' || to_char(m, 'YYYYMM'), m, m + interval '1 month') FROM generate_series($1::timestamptz, '2023-08-01', '1 month') m`, span.first)
	b.exec(`SELECT create_audit_log_partition('audit_log_d' || to_char(d, 'YYYYMMDD'), d, d + interval '1 day') FROM generate_series('2023-09-01'::timestamptz, $1, '1 day') d`, span.last)
	b.exec(`INSERT INTO audit_log (timestamp, principal_id, organization_id, action, status, hash, target_resource_type, target_resource_id, correlation_id, data_classification, retention_policy, archived_at)
		SELECT CASE i % 5 WHEN 0 THEN date_trunc('month', t) WHEN 1 THEN date_trunc('month', t) - interval '1 microsecond' ELSE t END,
		       (ARRAY['ann', 'bob', NULL])[1 + floor(random() * 3)], (ARRAY['A', 'B', 'C', NULL])[1 + floor(random() * 4)], (ARRAY['read', 'write'])[1 + floor(random() * 2)],
		       (ARRAY['success', 'failure', 'attempt'])[1 + floor(random() * 3)], (ARRAY[repeat('a', 64), repeat('1', 64)])[1 + floor(random() * 2)],
		       (ARRAY['patient', 'study', NULL])[1 + floor(random() * 3)], (ARRAY['1', '2'])[1 + floor(random() * 2)], (ARRAY['c', 'd'])[1 + floor(random() * 2)],
		       (ARRAY['PHI', 'PUBLIC'])[1 + floor(random() * 2)], (ARRAY['standard', '2555'])[1 + floor(random() * 2)],
		       CASE WHEN random() < 0.5 THEN t + interval '400 days' END
		FROM generate_series(1, 1500) i, LATERAL (SELECT $1::timestamptz + interval '1 month' + $2::interval * (i % 150) AS t) at WHERE t < $3::timestamptz + interval '1 day'`, span.first, span.apart, span.last)
	b.exec(`DO $$ DECLARE p record; BEGIN
		FOR p IN SELECT *, row_number() OVER () AS n FROM audit_log_partition_bounds() WHERE EXISTS (SELECT FROM audit_index_profile WHERE build = 'deferred') LOOP
			EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', p.relid::regclass); -- without statistics it is taken for being in order
			IF p.n % 3 = 0 THEN EXECUTE format('CREATE INDEX ON %s (timestamp)', p.relid::regclass); END IF;
			IF p.n % 4 = 0 THEN EXECUTE format('ANALYZE %s', p.relid::regclass); END IF;
		END LOOP; END $$`)
	rows, err := b.pool.Query(t.Context(), `SELECT id, timestamp, coalesce(principal_id, ''), coalesce(organization_id, ''), action, status, hash, coalesce(target_resource_type, ''), target_resource_id,
		correlation_id, data_classification, retention_policy, archived_at FROM audit_log`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	require.NoError(t, err)
	require.Greater(t, len(all), 1000)
	return b, all
}

// chooses tells whether the row is what a filter within a scope asks for.
func (r row) chooses(everything bool, organizations []string, f query.Filter) bool {
	for asked, has := range map[*string]string{
		&f.PrincipalID: r.Principal, &f.OrganizationID: r.Organization, &f.Action: r.Action, &f.Status: r.Status, &f.Hash: r.Hash, &f.TargetResourceType: r.ResourceType,
		&f.TargetResourceID: r.ResourceID, &f.CorrelationID: r.Correlation, &f.DataClassification: r.Classification, &f.RetentionPolicy: r.Policy,
	} {
		if *asked != "" && !strings.EqualFold(*asked, has) { // no two values differ in case alone
			return false
		}
	}
	archived := func(ok func(time.Time) bool) bool { return r.Archived != nil && ok(*r.Archived) }
	return !r.Timestamp.Before(f.From) && r.Timestamp.Before(f.To) && (everything || r.Organization != "" && slices.Contains(organizations, r.Organization)) &&
		(f.ArchivedFrom.IsZero() || archived(func(at time.Time) bool { return !at.Before(f.ArchivedFrom) })) &&
		(f.ArchivedTo.IsZero() || archived(func(at time.Time) bool { return at.Before(f.ArchivedTo) }))
}

// TestPages: whatever is asked, the pages one after the other are what the rows are that the model chooses, in order; so is an export; and a count is how many they are.
func TestPages(t *testing.T) { testPages(t, func(*bed) {}) }

// TestPagesWithDeferredIndexes: as TestPages, however table partitions that have no B-tree on timestamp are cut into pieces. Every third has one, and every fourth is known to be scattered.
func TestPagesWithDeferredIndexes(t *testing.T) {
	testPages(t, func(b *bed) {
		choice := indexes.Choice{Profile: indexes.Full, Build: indexes.Deferred}
		require.NoError(t, pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error { return indexes.Choose(t.Context(), tx, choice) }))
	})
}

func testPages(t *testing.T, prepare func(*bed)) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) {
			b, all := modelBedOf(t, version, modelSpan{"2023-01-01", "2023-09-20", "37 hours"}, prepare)
			r := b.reader()
			deferred := b.number(`SELECT count(*) FROM audit_index_profile WHERE build = 'deferred'`) > 0
			slices.SortFunc(all, func(x, y row) int { return cmp.Or(x.Timestamp.Compare(y.Timestamp), cmp.Compare(x.ID, y.ID)) })
			rapid.Check(t, func(t *rapid.T) {
				everything := rapid.Bool().Draw(t, "everything")
				var organizations []string
				if !everything {
					organizations = rapid.SliceOfN(rapid.SampledFrom([]string{"A", "B", "C", "D", "", "A"}), 0, 3).Draw(t, "organizations")
				}
				scope := query.Organizations(organizations...)
				if everything {
					scope = query.Everything()
				}
				f := drawFilter(t, all)
				limit := rapid.SampledFrom([]int{1, 2, 3, 7, 10, 50, 1000}).Draw(t, "limit")
				if deferred {
					r.Cut(rapid.SampledFrom([]time.Duration{time.Microsecond, time.Second, 10 * time.Second, time.Hour, 1000 * time.Hour}).Draw(t, "first"),
						rapid.SampledFrom([]int64{1, 3, 20, 10_000}).Draw(t, "events"))
				}

				want := []int64{}
				for _, row := range all {
					if row.chooses(everything, organizations, f) {
						want = append(want, row.ID)
					}
				}
				if !f.Ascending {
					slices.Reverse(want)
				}
				got := []int64{}
				if limit < 10 && len(want) > 30*limit { // enough pages to tell
					want = want[:30*limit]
				}
				for after, pages := "", 0; ; pages++ {
					page, err := r.Events(b.Context(), scope, f, limit, after)
					require.NoError(t, err)
					require.LessOrEqual(t, len(page.Events), limit)
					for _, e := range page.Events {
						got = append(got, e.ID)
					}
					if page.Next == "" || limit < 10 && len(got) >= 30*limit {
						break
					}
					require.Len(t, page.Events, limit, "only the last page is short")
					after = page.Next
				}
				require.Equal(t, want, got)
				if limit < 10 {
					return
				}
				got = []int64{}
				require.NoError(t, r.Export(b.Context(), scope, f, func(e query.Event) error { got = append(got, e.ID); return nil }))
				require.Equal(t, want, got)
				most := rapid.Int64Range(1, int64(2*len(want)+1)).Draw(t, "most")
				count, err := r.Count(b.Context(), scope, f, most)
				require.NoError(t, err)
				require.Equal(t, query.Count{Count: min(most, int64(len(want))), Exact: int64(len(want)) <= most}, count)
			})
		})
	}
}

// drawFilter asks for any of the conditions; the range often begins or ends at an event, or at a border.
func drawFilter(t *rapid.T, all []row) query.Filter {
	instant := rapid.Custom(func(t *rapid.T) time.Time {
		at := rapid.SampledFrom(all).Draw(t, "near").Timestamp
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			at = time.Date(at.Year(), at.Month(), 1, 0, 0, 0, 0, time.UTC)
		case 1:
			at = at.Add(rapid.SampledFrom([]time.Duration{-time.Microsecond, time.Microsecond, time.Nanosecond, -time.Nanosecond}).Draw(t, "beside"))
		}
		return at.In(rapid.SampledFrom([]*time.Location{time.UTC, time.FixedZone("", 9*3600)}).Draw(t, "zone"))
	})
	f := query.Filter{
		From: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), Ascending: rapid.Bool().Draw(t, "ascending"),
	}
	if rapid.Bool().Draw(t, "bounded") {
		f.From, f.To = instant.Draw(t, "from"), instant.Draw(t, "to")
		if f.To.Before(f.From) {
			f.From, f.To = f.To, f.From
		}
		if !f.From.Before(f.To.Add(-time.Microsecond)) {
			f.To = f.From.Add(2 * time.Microsecond)
		}
	}
	for _, field := range []struct {
		to     *string
		values []string
	}{
		{&f.PrincipalID, []string{"ann", "bob", "nobody"}},
		{&f.OrganizationID, []string{"A", "B", "D"}},
		{&f.Action, []string{"read", "write"}},
		{&f.Status, []string{"success", "failure", "attempt"}},
		{&f.Hash, []string{strings.Repeat("a", 64), strings.Repeat("A", 64), strings.Repeat("1", 64)}},
		{&f.TargetResourceType, []string{"patient", "study"}},
		{&f.TargetResourceID, []string{"1", "2"}},
		{&f.CorrelationID, []string{"c", "d"}},
		{&f.DataClassification, []string{"PHI", "phi", "Public"}},
		{&f.RetentionPolicy, []string{"standard", "2555"}},
	} {
		if rapid.IntRange(0, 5).Draw(t, "asked") == 0 {
			*field.to = rapid.SampledFrom(field.values).Draw(t, "value")
		}
	}
	if rapid.IntRange(0, 5).Draw(t, "archived") == 0 {
		f.ArchivedFrom = instant.Draw(t, "archived from").AddDate(1, 0, 0)
		if rapid.Bool().Draw(t, "both") {
			f.ArchivedTo = f.ArchivedFrom.AddDate(0, 3, 0)
		}
	}
	return f
}
