package performance

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// defaults are the settings of a new server, of Postgres 18.
func defaults() Settings {
	return Settings{
		SharedBuffers: 128 * mB, EffectiveCacheSize: 4 * gB, WorkMem: 4 * mB, MaintenanceWorkMem: 64 * mB, MaxWALSize: gB, CheckpointTimeoutSeconds: 300, CheckpointTarget: 0.9,
		WALCompression: "off", WALCompressions: []string{"pglz", "lz4", "on", "off"}, Autovacuum: true, TrackCounts: true, AutovacuumWorkers: 3, WorkerSlots: 16,
		CostDelayMillis: 2, CostLimit: 200, RandomPageCost: 4, SeqPageCost: 1, MaxConnections: 100, ReservedConnections: 3,
	}
}

// TestAdvice: each rule with what causes it, and just before.
func TestAdvice(t *testing.T) {
	quiet := Facts{Settings: defaults(), Replicas: 3, PoolMaxConns: 20, ReadMaxConns: 4} // of a machine that isn't known
	large := quiet
	large.Machine = Machine{MemoryBytes: 16 * gB, Cores: 8}
	for _, c := range []struct {
		name   string
		facts  Facts
		change func(*Facts)
		want   string // setting=current→proposed, in order
	}{
		{"nothing to say", quiet, func(*Facts) {}, ""},
		{
			"a new server on a machine of 16 GB", large, func(*Facts) {},
			"shared_buffers=128MB→4GB effective_cache_size=4GB→12GB maintenance_work_mem=64MB→683MB",
		},
		{"what is near enough stays", large, func(f *Facts) { f.SharedBuffers, f.EffectiveCacheSize, f.MaintenanceWorkMem = 2*gB, 6*gB, 400*mB }, ""},
		{"too much memory", large, func(f *Facts) {
			f.SharedBuffers, f.EffectiveCacheSize, f.MaintenanceWorkMem, f.WorkMem = 8*gB, 32*gB, 4*gB, gB
		}, "shared_buffers=8GB→4GB effective_cache_size=32GB→12GB work_mem=1GB→41MB maintenance_work_mem=4GB→683MB"},
		{"a cache that is less than its part", quiet, func(f *Facts) { f.EffectiveCacheSize = 64 * mB }, "effective_cache_size=64MB→128MB"},
		{"temporary files", large, func(f *Facts) {
			f.SharedBuffers, f.EffectiveCacheSize, f.MaintenanceWorkMem = 4*gB, 12*gB, 683*mB
			f.TempFiles, f.TempBytes = 10, 100*mB
		}, "work_mem=4MB→20MB"},
		{"small ones", large, func(f *Facts) {
			f.SharedBuffers, f.EffectiveCacheSize, f.MaintenanceWorkMem = 4*gB, 12*gB, 683*mB
			f.TempFiles, f.TempBytes = 10, 10*mB
		}, ""},
		{"the fleet finds its connections", quiet, func(f *Facts) { f.MaxConnections = 91 }, ""},
		{"it doesn't", quiet, func(f *Facts) { f.MaxConnections = 90 }, "max_connections=90→100"},
		{"others take them", quiet, func(f *Facts) { f.Others = 40 }, "max_connections=100→130"},
		{"more workers", quiet, func(f *Facts) { f.Replicas = 8 }, "max_connections=100→230"},
		{"no autovacuum", quiet, func(f *Facts) { f.Autovacuum, f.TrackCounts = false, false }, "track_counts=off→on autovacuum=off→on"},
		{
			"a slow one", quiet, func(f *Facts) { f.AutovacuumWorkers, f.CostDelayMillis, f.CostLimit = 1, 20, 100 },
			"autovacuum_vacuum_cost_delay=20ms→2ms autovacuum_max_workers=1→3 autovacuum_vacuum_cost_limit=100→200",
		},
		{"it keeps up", quiet, func(f *Facts) { f.DeadRows, f.LiveRows, f.Cores = 1e6, 7e6, 8 }, ""},
		{
			"it doesn't", quiet, func(f *Facts) { f.DeadRows, f.LiveRows, f.Cores = 4e6, 6e6, 12 },
			"autovacuum_max_workers=3→6 autovacuum_vacuum_cost_limit=200→1000",
		},
		{"checkpoints that hurry", quiet, func(f *Facts) { f.CheckpointTarget = 0.5 }, "checkpoint_completion_target=0.5→0.9"},
		{"little WAL", quiet, func(f *Facts) { f.WALBytesPerSecond = 1.7 * float64(mB) }, ""},
		{"much", quiet, func(f *Facts) { f.WALBytesPerSecond = 10 * float64(mB) }, "max_wal_size=1GB→7GB"},
		{"too much", quiet, func(f *Facts) { f.WALBytesPerSecond = float64(gB) }, "max_wal_size=1GB→64GB"},
		{"images of pages", quiet, func(f *Facts) { f.WALBytes, f.FullPageImages = 100*mB, 4_000 }, "wal_compression=off→lz4"},
		{"few", quiet, func(f *Facts) { f.WALBytes, f.FullPageImages = 100*mB, 3_000 }, ""},
		{"a server without lz4", quiet, func(f *Facts) {
			f.WALCompressions, f.WALBytes, f.FullPageImages = []string{"pglz", "on", "off"}, 100*mB, 9_000
		}, "wal_compression=off→pglz"},
		{"all in memory", quiet, func(f *Facts) { f.Blocks, f.HitRatio, f.DatabaseBytes = 10_000, 0.99, 2*gB }, "random_page_cost=4→1.1"},
		{"not all", quiet, func(f *Facts) { f.Blocks, f.HitRatio, f.DatabaseBytes = 10_000, 0.98, 2*gB }, ""},
		{"what rows are added to", quiet, func(f *Facts) { f.Blocks, f.HitRatio, f.DatabaseBytes = 10_000, 1, 2*gB+1 }, ""},
		{"no such disk", quiet, func(f *Facts) { f.RandomPageCost = 0.5 }, "random_page_cost=0.5→1"},
	} {
		f := c.facts
		c.change(&f)
		advice, _ := Advise(f)
		var got []string
		for _, a := range advice {
			require.NotEmpty(t, a.Why)
			require.NotContains(t, a.Why, "%!", c.name)
			got = append(got, a.Setting+"="+a.Current+"→"+a.Proposed)
		}
		require.Equal(t, c.want, strings.Join(got, " "), c.name)
	}
	_, unknown := Advise(quiet)
	require.Len(t, unknown, 2)
	_, unknown = Advise(large)
	require.Empty(t, unknown)
}

// apply sets what was proposed, as an operator would who reads nothing but setting and value.
func apply(t require.TestingT, s *Settings, all []Advice) {
	size := func(text string) int64 {
		for suffix, unit := range map[string]int64{"TB": gB << 10, "GB": gB, "MB": mB, "kB": kB} {
			if digits, ok := strings.CutSuffix(text, suffix); ok {
				n, err := strconv.ParseInt(digits, 10, 64)
				require.NoError(t, err)
				return n * unit
			}
		}
		require.Fail(t, "no size", text)
		return 0
	}
	number := func(text string) float64 {
		n, err := strconv.ParseFloat(strings.TrimSuffix(text, "ms"), 64)
		require.NoError(t, err)
		return n
	}
	for _, a := range all {
		require.NotEqual(t, a.Current, a.Proposed, a.Setting)
		v := a.Proposed
		switch a.Setting {
		case "shared_buffers":
			s.SharedBuffers = size(v)
		case "effective_cache_size":
			s.EffectiveCacheSize = size(v)
		case "work_mem":
			s.WorkMem = size(v)
		case "maintenance_work_mem":
			s.MaintenanceWorkMem = size(v)
		case "max_wal_size":
			s.MaxWALSize = size(v)
		case "checkpoint_completion_target":
			s.CheckpointTarget = number(v)
		case "wal_compression":
			s.WALCompression = v
		case "autovacuum":
			s.Autovacuum = v == "on"
		case "track_counts":
			s.TrackCounts = v == "on"
		case "autovacuum_max_workers":
			s.AutovacuumWorkers = int(number(v))
		case "autovacuum_vacuum_cost_delay":
			s.CostDelayMillis = number(v)
		case "autovacuum_vacuum_cost_limit":
			s.CostLimit = int(number(v))
		case "random_page_cost":
			s.RandomPageCost = number(v)
		case "max_connections":
			s.MaxConnections = int(number(v))
		default:
			require.Fail(t, "no such setting", a.Setting)
		}
	}
}

// TestAdviceIsSound: whatever the facts, who follows it is given no more of it, and it is nothing that the server would refuse or the machine couldn't bear.
func TestAdviceIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kilobytes := func(name string, low, high int64) int64 { return kB * rapid.Int64Range(low/kB, high/kB).Draw(t, name) }
		f := Facts{
			Settings: Settings{
				SharedBuffers: kilobytes("shared_buffers", 128*kB, 256*gB), EffectiveCacheSize: kilobytes("effective_cache_size", 8*kB, 256*gB),
				WorkMem: kilobytes("work_mem", 64*kB, 8*gB), MaintenanceWorkMem: kilobytes("maintenance_work_mem", mB, 16*gB), MaxWALSize: kilobytes("max_wal_size", 2*mB, 256*gB),
				CheckpointTimeoutSeconds: rapid.Float64Range(30, 86400).Draw(t, "timeout"), CheckpointTarget: rapid.Float64Range(0, 1).Draw(t, "target"),
				WALCompression: rapid.SampledFrom([]string{"off", "on", "pglz", "lz4", "zstd"}).Draw(t, "compression"), WALCompressions: rapid.SampledFrom([][]string{{"pglz"}, {"pglz", "lz4"}}).Draw(t, "compressions"),
				Autovacuum: rapid.Bool().Draw(t, "autovacuum"), TrackCounts: rapid.Bool().Draw(t, "counts"), AutovacuumWorkers: rapid.IntRange(1, 40).Draw(t, "workers"),
				WorkerSlots: rapid.SampledFrom([]int{0, 1, 2, 5, 16, 64}).Draw(t, "slots"), CostDelayMillis: rapid.Float64Range(0, 100).Draw(t, "delay"), CostLimit: rapid.IntRange(1, 10_000).Draw(t, "limit"),
				RandomPageCost: rapid.Float64Range(0, 10).Draw(t, "random"), SeqPageCost: rapid.Float64Range(0, 5).Draw(t, "seq"),
				MaxConnections: rapid.IntRange(1, 1000).Draw(t, "connections"), ReservedConnections: rapid.IntRange(0, 20).Draw(t, "reserved"),
			},
			Machine: Machine{MemoryBytes: rapid.SampledFrom([]int64{0, 512 * mB, gB, 16 * gB, 1000 * gB, 16*gB + 4096*3}).Draw(t, "memory"), Cores: rapid.IntRange(0, 128).Draw(t, "cores")},
			Load: Load{
				WALBytesPerSecond: rapid.Float64Range(0, 1e9).Draw(t, "rate"), WALBytes: rapid.Int64Range(0, 1<<40).Draw(t, "wal"), FullPageImages: rapid.Int64Range(0, 1<<30).Draw(t, "images"),
				TempFiles: rapid.Int64Range(0, 1000).Draw(t, "files"), TempBytes: rapid.Int64Range(0, 1<<40).Draw(t, "temp"), LiveRows: rapid.Int64Range(0, 1e9).Draw(t, "live"),
				DeadRows: rapid.Int64Range(0, 1e9).Draw(t, "dead"), Blocks: rapid.Int64Range(0, 1e9).Draw(t, "blocks"), HitRatio: rapid.Float64Range(0, 1).Draw(t, "ratio"), DatabaseBytes: rapid.Int64Range(0, 1<<40).Draw(t, "database"),
			},
			Replicas: rapid.IntRange(0, 100).Draw(t, "replicas"), PoolMaxConns: rapid.IntRange(1, 100).Draw(t, "pool"), ReadMaxConns: rapid.IntRange(1, 100).Draw(t, "reads"), Others: rapid.IntRange(0, 500).Draw(t, "others"),
		}
		advice, _ := Advise(f)
		after := f
		apply(t, &after.Settings, advice)
		again, _ := Advise(after)
		require.Empty(t, again, "%+v, after %+v", f, advice)
		told := func(setting string) bool {
			return slices.ContainsFunc(advice, func(a Advice) bool { return a.Setting == setting })
		}
		if f.MemoryBytes == 0 {
			for _, setting := range []string{"shared_buffers", "work_mem", "maintenance_work_mem"} {
				require.False(t, told(setting), "%s, of a machine that isn't known", setting)
			}
		} else if told("shared_buffers") {
			require.LessOrEqual(t, after.SharedBuffers, f.MemoryBytes/5*2)
		}
		if told("effective_cache_size") && f.MemoryBytes > 0 {
			require.True(t, after.EffectiveCacheSize <= f.MemoryBytes || f.MemoryBytes < gB)
		}
		if told("work_mem") {
			require.LessOrEqual(t, (after.WorkMem-4*mB)*int64(after.MaxConnections), f.MemoryBytes/2+int64(after.MaxConnections)*mB)
		}
		if told("autovacuum_max_workers") && f.WorkerSlots > 0 {
			require.LessOrEqual(t, after.AutovacuumWorkers, f.WorkerSlots)
		}
		require.GreaterOrEqual(t, after.RandomPageCost, after.SeqPageCost)
		require.GreaterOrEqual(t, after.MaxConnections, max(f.Replicas, 1)*(f.PoolMaxConns+f.ReadMaxConns+2)+f.ReservedConnections)
		for _, a := range advice {
			require.NotContains(t, a.Why, "%!")
		}
	})
}

// TestAdviceIsTaken: advice is about the server's own settings, and it takes each proposal by ALTER SYSTEM.
func TestAdviceIsTaken(t *testing.T) {
	own(t, map[string]string{
		"autovacuum_max_workers": "1", "checkpoint_completion_target": "0.4", "autovacuum_vacuum_cost_delay": "30ms", "random_page_cost": "0.5", "max_connections": "40", "effective_cache_size": "64MB",
	}, func(b *bed) {
		b.metrics.FleetReplicas.Set(4)
		c := b.collector(func(o *Options) { o.Database = Machine{MemoryBytes: 16 * gB, Cores: 8} })
		r := b.next(c)
		var names []string
		for _, a := range r.Advice {
			names = append(names, a.Setting)
			b.exec(`ALTER SYSTEM SET ` + a.Setting + ` = '` + a.Proposed + `'`)
		}
		require.Equal(b, []string{
			"max_connections", "shared_buffers", "effective_cache_size", "autovacuum_vacuum_cost_delay", "autovacuum_max_workers",
			"maintenance_work_mem", "checkpoint_completion_target", "random_page_cost",
		}, names)
		require.Equal(b, Advice{Setting: "max_connections", Current: "40", Proposed: "120"}, Advice{r.Advice[0].Setting, r.Advice[0].Current, r.Advice[0].Proposed, ""}, "4 × (20 + 4 + 2) + 3 + 10")
		require.Equal(b, "32MB", r.Advice[1].Current)
		require.Equal(b, "4GB", r.Advice[1].Proposed)
	})
}

// TestWorkersByTheirLanes: those who had a lane that isn't in use any more are no workers of now.
func TestWorkersByTheirLanes(t *testing.T) {
	versions(t, func(b *bed) {
		b.bare()
		b.exec(`INSERT INTO audit_lane (topic, topic_id, partition, consumer_group, owner, next_offset, state)
			SELECT 't', gen_random_uuid(), i, 'g', 'host/' || i, 0, CASE WHEN i <= 2 THEN 'active' ELSE 'retired' END FROM generate_series(1, 9) i`)
		require.Equal(b, 2, count(b.Context(), b.pool, time.Now, nil, time.Second).settings.owners)
	})
}
