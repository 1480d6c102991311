package performance

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/partitions"
)

const (
	// A partition of at least bigRows rows that is read as a whole manySeqScans times in a window may lack an index. How often is told by
	// the rows read: the server's count of scans has each worker of a parallel scan, and scans that end after a few rows.
	bigRows      = 10_000
	manySeqScans = 10
	// buildScans is how often the building of an index reads its table: CREATE INDEX CONCURRENTLY twice, the other one once.
	buildScans = 2
	// mostDead is how many partitions with dead rows are told of.
	mostDead = 20
)

// tableCounts are the partitions by their OIDs, so that one that goes takes nothing from the sum of the others.
type tableCounts struct {
	counted
	by map[uint32]tableCount
}

type tableCount struct {
	Partition
	Estimate          int64 // reltuples, by the last VACUUM or ANALYZE
	Plain             bool  // a plain table that isn't being detached
	SeqRows           int64 // read by sequential scans
	Fetched, Hit      int64 // blocks of the heap
	Vacuums, Analyzes int64 // of people and auditsink, not autovacuum's
}

// rows is the best guess at how many there are: a crash loses what the statistics know.
func (t tableCount) rows() int64 { return max(t.Live, t.Estimate, 0) }

// statsReset is from when the statistics of this database's tables and indexes count. Where nobody has reset them it is from when all statistics do.
const statsReset = `SELECT coalesce(d.stats_reset, w.stats_reset) FROM pg_stat_database d, pg_stat_wal w WHERE d.datname = current_database()`

func countTables(ctx context.Context, tx pgx.Tx, now time.Time) (*tableCounts, error) {
	c := &tableCounts{counted: counted{at: now}, by: map[uint32]tableCount{}}
	var reset *time.Time
	if err := tx.QueryRow(ctx, statsReset).Scan(&reset); err != nil {
		return nil, fmt.Errorf("read since when the statistics count: %w", err)
	}
	c.reset = utc(reset)
	all, err := readTables(ctx, tx)
	for oid, t := range all {
		c.by[oid] = t
	}
	return c, err
}

// readTables reads the statistics of the partitions, which takes no lock of theirs.
func readTables(ctx context.Context, tx pgx.Tx) (map[uint32]tableCount, error) {
	rows, err := tx.Query(ctx, `
		SELECT b.relid, b.partition_name, c.relkind = 'r' AND NOT b.is_detaching, c.reltuples::bigint, pg_stat_get_live_tuples(b.relid), pg_stat_get_dead_tuples(b.relid),
		       pg_stat_get_mod_since_analyze(b.relid), pg_stat_get_tuples_returned(b.relid),
		       pg_stat_get_blocks_fetched(b.relid), pg_stat_get_blocks_hit(b.relid),
		       greatest(pg_stat_get_last_analyze_time(b.relid), pg_stat_get_last_autoanalyze_time(b.relid)),
		       greatest(pg_stat_get_last_vacuum_time(b.relid), pg_stat_get_last_autovacuum_time(b.relid)),
		       pg_stat_get_vacuum_count(b.relid), pg_stat_get_analyze_count(b.relid)
		FROM audit_log_partition_bounds() b JOIN pg_class c ON c.oid = b.relid`)
	if err != nil {
		return nil, fmt.Errorf("read the statistics of the partitions: %w", err)
	}
	all := map[uint32]tableCount{}
	var oid uint32
	var t tableCount
	var analyzed, vacuumed *time.Time
	_, err = pgx.ForEachRow(rows, []any{
		&oid, &t.Name, &t.Plain, &t.Estimate, &t.Live, &t.Dead, &t.Modified, &t.SeqRows, &t.Fetched, &t.Hit, &analyzed, &vacuumed, &t.Vacuums, &t.Analyzes,
	}, func() error {
		t.Analyzed, t.Vacuumed = utc(analyzed), utc(vacuumed)
		all[oid] = t
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the statistics of the partitions: %w", err)
	}
	return all, nil
}

func (c *tableCounts) since(before *tableCounts) *Tables {
	t := &Tables{Dead: []Partition{}}
	earlier := map[uint32]tableCount{}
	var ok bool
	if t.Since, ok = c.counted.since(countedOf(before)); ok {
		earlier = before.by
	}
	for oid, now := range c.by {
		was := earlier[oid]
		hits, fetched := added(now.Hit, was.Hit), added(now.Fetched, was.Fetched)
		t.Hits += hits
		t.Reads += max(0, fetched-hits)
		t.LiveRows += now.rows()
		t.DeadRows += now.Dead
		if now.Dead > 0 {
			p := now.Partition
			p.Live = now.rows()
			t.Dead = append(t.Dead, p)
		}
	}
	t.HitRatio = ratio(t.Hits, t.Hits+t.Reads)
	slices.SortFunc(t.Dead, func(a, b Partition) int { return cmp.Or(cmp.Compare(b.Dead, a.Dead), cmp.Compare(a.Name, b.Name)) })
	t.Dead = t.Dead[:min(len(t.Dead), mostDead)]
	return t
}

// missing lists the big partitions that were read as a whole again and again since a look before, not counting what built so many indexes of theirs.
func (c *tableCounts) missing(before *tableCounts, built map[uint32]int64) []SeqScanned {
	found := []SeqScanned{}
	earlier := map[uint32]tableCount{}
	if _, ok := c.counted.since(countedOf(before)); ok {
		earlier = before.by
	}
	for oid, now := range c.by {
		was := earlier[oid]
		s := SeqScanned{Partition: now.Name, RowsRead: added(now.SeqRows, was.SeqRows), Rows: max(now.rows(), was.rows())}
		if s.Rows < bigRows {
			continue
		}
		if s.Scans = s.RowsRead/s.Rows - buildScans*built[oid]; s.Scans >= manySeqScans {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b SeqScanned) int {
		return cmp.Or(cmp.Compare(b.RowsRead, a.RowsRead), cmp.Compare(a.Partition, b.Partition))
	})
	return found
}

// indexCounts are the indexes of the partitions by their OIDs.
type indexCounts struct {
	counted
	by map[uint32]indexCount
}

type indexCount struct {
	table         uint32
	name          string // of the parent index; of a partition's own (a deferred build) what a parent's would be
	scans, bytes  int64
	unique, valid bool
}

func countIndexes(ctx context.Context, tx pgx.Tx, now time.Time) (*indexCounts, error) {
	c := &indexCounts{counted: counted{at: now}, by: map[uint32]indexCount{}}
	var reset *time.Time
	if err := tx.QueryRow(ctx, statsReset).Scan(&reset); err != nil {
		return nil, fmt.Errorf("read since when the statistics count: %w", err)
	}
	c.reset = utc(reset)
	rows, err := tx.Query(ctx, `
		SELECT x.indexrelid, x.indrelid, coalesce(parent.relname, CASE WHEN starts_with(own.relname, b.partition_name || '_') THEN 'audit_log' || substr(own.relname, length(b.partition_name) + 1) ELSE own.relname END)::text, x.indisunique, x.indisvalid, pg_stat_get_numscans(x.indexrelid),
		       coalesce(pg_relation_size(x.indexrelid), 0)
		FROM audit_log_partition_bounds() b JOIN pg_index x ON x.indrelid = b.relid JOIN pg_class own ON own.oid = x.indexrelid
		LEFT JOIN pg_inherits i ON i.inhrelid = x.indexrelid LEFT JOIN pg_class parent ON parent.oid = i.inhparent`)
	if err != nil {
		return nil, fmt.Errorf("read the use of the indexes: %w", err)
	}
	var oid uint32
	var one indexCount
	_, err = pgx.ForEachRow(rows, []any{&oid, &one.table, &one.name, &one.unique, &one.valid, &one.scans, &one.bytes}, func() error {
		c.by[oid] = one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the use of the indexes: %w", err)
	}
	return c, nil
}

// since sums up by parent index. tables tell which partitions are read without any.
func (c *indexCounts) since(before *indexCounts, tables, tablesBefore *tableCounts) *Indexes {
	r := &Indexes{Stats: c.reset, All: []Index{}, Unused: []string{}, Missing: []SeqScanned{}, Invalid: []string{}}
	earlier := map[uint32]indexCount{}
	var ok bool
	if r.Since, ok = c.counted.since(countedOf(before)); ok {
		earlier = before.by
	}
	by, invalid, built := map[string]Index{}, map[string]bool{}, map[uint32]int64{}
	for oid, one := range c.by {
		if _, known := earlier[oid]; !known {
			built[one.table]++
		}
		sum := by[one.name]
		sum.Name = one.name
		sum.Partitions++
		sum.Scans += added(one.scans, earlier[oid].scans)
		sum.ScansEver += one.scans
		sum.Bytes += one.bytes
		sum.Unique = one.unique
		by[one.name] = sum
		if !one.valid {
			invalid[one.name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		r.All = append(r.All, by[name])
		if by[name].ScansEver == 0 && !by[name].Unique {
			r.Unused = append(r.Unused, name)
		}
	}
	r.Invalid = append(r.Invalid, slices.Sorted(maps.Keys(invalid))...)
	if tables != nil {
		r.Missing = tables.missing(tablesBefore, built)
	}
	return r
}

// readPartitions tells how the partitions are, and how large.
func readPartitions(ctx context.Context, tx pgx.Tx, now time.Time) (*Partitions, error) {
	type one struct {
		partitions.Bounds
		attached     bool
		table, index int64
	}
	all, err := rowsOf(ctx, tx, "the sizes of the partitions", func(row pgx.CollectableRow) (one, error) {
		var o one
		var from, to *time.Time
		err := row.Scan(&o.Name, &from, &to, &o.Default, &o.Detaching, &o.attached, &o.table, &o.index)
		o.From, o.To = utc(from), utc(to)
		return o, err
	}, `
		SELECT b.partition_name, b.lower_bound, b.upper_bound, b.is_default, b.is_detaching, true, coalesce(pg_table_size(b.relid), 0), coalesce(pg_indexes_size(b.relid), 0)
		FROM audit_log_partition_bounds() b
		UNION ALL
		SELECT DISTINCT c.relname::text, NULL::timestamptz, NULL::timestamptz, false, false, false, coalesce(pg_table_size(c.oid), 0), coalesce(pg_indexes_size(c.oid), 0)
		FROM audit_partition_event e JOIN pg_class parent ON parent.oid = 'audit_log'::regclass
		JOIN pg_class c ON c.relnamespace = parent.relnamespace AND c.relname = e.partition_name AND NOT c.relispartition
		WHERE e.kind = 'drop' AND e.state = 'detached'`)
	if err != nil {
		return nil, err
	}
	p := &Partitions{}
	var attached []partitions.Bounds
	for _, o := range all {
		if !o.attached {
			p.Detached++
			p.DetachedBytes += o.table + o.index
			continue
		}
		attached = append(attached, o.Bounds)
		p.Count++
		p.TableBytes += o.table
		p.IndexBytes += o.index
		if o.Detaching {
			p.Detaching++
		}
		if o.table+o.index > p.BiggestBytes {
			p.Biggest, p.BiggestBytes = o.Name, o.table+o.index
		}
	}
	p.ReadyUntil = partitions.ReadyUntil(now, attached).UTC()
	return p, nil
}
