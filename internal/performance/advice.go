package performance

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

// Facts are what advice on the server's settings is computed from.
type Facts struct {
	Settings
	Machine          // the database's; what isn't known is 0
	Load             // of the window
	Replicas     int // workers
	PoolMaxConns int // of each, for ingest
	ReadMaxConns int // of each, for reads
	Others       int // connections of others than auditsink
}

// Load is what the server did in a window.
type Load struct {
	WALBytesPerSecond    float64
	WALBytes             int64
	FullPageImages       int64
	RequestedCheckpoints int64
	TempFiles            int64
	TempBytes            int64
	LiveRows, DeadRows   int64
	Blocks               int64 // of the partitions' heaps that were needed
	HitRatio             float64
	DatabaseBytes        int64
}

// Advice is what one setting of the server should be.
type Advice struct {
	Setting  string `json:"setting"`
	Current  string `json:"current"`
	Proposed string `json:"proposed"`
	Why      string `json:"why"`
}

const (
	kB = int64(1) << 10
	mB = int64(1) << 20
	gB = int64(1) << 30
)

// aside is how many connections a worker has beside its pools: the lease, and upkeep.
const aside = 2

// Advise proposes settings. Each rule names the section of Postgres's documentation (chapter Server Configuration)
// that it comes from. What has been proposed counts as set for the rules
// after it, so that all proposals together are sound: who follows them is given no more. What differs little isn't worth a word.
// unknown is what would have to be known for more.
func Advise(f Facts) (advice []Advice, unknown []string) {
	a := &adviser{Facts: f}
	// The order matters: a rule stands on what those before it proposed.
	a.maxConnections()
	a.sharedBuffers()
	a.effectiveCacheSize()
	a.workMem()
	a.autovacuum()
	a.maintenanceWorkMem()
	a.checkpointTarget()
	a.maxWALSize()
	a.walCompression()
	a.randomPageCost()
	if f.MemoryBytes == 0 {
		unknown = append(unknown, "the memory of the database's machine (AUDITSINK_DATABASE_MEMORY), which shared_buffers, effective_cache_size, work_mem and maintenance_work_mem depend on")
	}
	if f.Cores == 0 {
		unknown = append(unknown, "the cores of the database's machine (AUDITSINK_DATABASE_CORES), which autovacuum_max_workers depends on")
	}
	return a.advice, unknown
}

// adviser holds the facts as they would be with what was proposed so far.
type adviser struct {
	Facts
	advice []Advice
}

func (a *adviser) propose(setting, current, proposed, why string, args ...any) {
	a.advice = append(a.advice, Advice{Setting: setting, Current: current, Proposed: proposed, Why: fmt.Sprintf(why, args...)})
}

func (a *adviser) bytes(setting string, current *int64, proposed int64, why string, args ...any) {
	a.propose(setting, sizeSetting(*current), sizeSetting(proposed), why, args...)
	*current = proposed
}

// maxConnections (Connections and Authentication, Connection Settings): each connection of every worker must find a place, besides those reserved for superusers and those of others. A server that runs
// out of them refuses workers with 53300.
func (a *adviser) maxConnections() {
	replicas := max(a.Replicas, 1)
	each := a.PoolMaxConns + a.ReadMaxConns + aside
	others := max(a.Others, 10)
	need := replicas*each + a.ReservedConnections + others
	if a.MaxConnections >= need {
		return
	}
	proposed := (need + 9) / 10 * 10
	a.propose("max_connections", strconv.Itoa(a.MaxConnections), strconv.Itoa(proposed),
		"%d workers × (POOL_MAX_CONNS %d + QUERY_MAX_CONNS %d + %d) + %d reserved + %d for others need %d connections; where a pooler stands between, lower the workers' pools or leave it",
		replicas, a.PoolMaxConns, a.ReadMaxConns, aside, a.ReservedConnections, others, need)
	a.MaxConnections = proposed
}

// sharedBuffers (Resource Consumption, Memory): "If you have a dedicated database server with 1GB or more of RAM, a reasonable starting value for shared_buffers is 25% of the memory
// in your system […] it is unlikely that an allocation of more than 40% of RAM to shared_buffers will work better than a smaller amount."
func (a *adviser) sharedBuffers() {
	if a.MemoryBytes < gB {
		return
	}
	target := roundMB(a.MemoryBytes / 4)
	if a.SharedBuffers < target/2 || a.SharedBuffers > a.MemoryBytes/5*2 {
		a.bytes("shared_buffers", &a.SharedBuffers, target, "a quarter of the machine's %s of memory is where to start; over 40%% leaves too little to the system's cache", size(float64(a.MemoryBytes)))
	}
}

// effectiveCacheSize (Query Planning, Planner Cost Constants): "you should consider both PostgreSQL's shared buffers and the portion of the kernel's disk cache that will be used for
// PostgreSQL data files". It reserves nothing; too low a value makes index scans look dear.
func (a *adviser) effectiveCacheSize() {
	if a.MemoryBytes >= gB {
		target := roundMB(a.MemoryBytes / 4 * 3)
		if a.EffectiveCacheSize < target/2 || a.EffectiveCacheSize > a.MemoryBytes {
			a.bytes("effective_cache_size", &a.EffectiveCacheSize, target, "shared_buffers and the system's cache together come to about three quarters of %s", size(float64(a.MemoryBytes)))
		}
		return
	}
	if a.EffectiveCacheSize < a.SharedBuffers {
		a.bytes("effective_cache_size", &a.EffectiveCacheSize, a.SharedBuffers, "it can't be less than shared_buffers, which is a part of it")
	}
}

// workMem (Resource Consumption, Memory): "a complex query might perform several sort and hash operations at the same time, with each operation generally being allowed to use as
// much memory as this value […] the total memory used could be many times the value of work_mem". Temporary files tell that it was too little.
func (a *adviser) workMem() {
	if a.MemoryBytes < gB || a.MaxConnections <= 0 {
		return
	}
	most := max(roundMB(a.MemoryBytes/4/int64(a.MaxConnections)), 4*mB)
	if a.WorkMem > 4*most {
		a.bytes("work_mem", &a.WorkMem, most, "%d connections may each take it more than once, of %s of memory", a.MaxConnections, size(float64(a.MemoryBytes)))
		return
	}
	if a.TempFiles <= 0 {
		return
	}
	// In memory, what is sorted takes more room than on disk.
	target := min(roundMB(2*(a.TempBytes/a.TempFiles)), most)
	if target >= 2*a.WorkMem {
		a.bytes("work_mem", &a.WorkMem, target, "%d temporary files of %s on average were written in the window for want of it", a.TempFiles, size(float64(a.TempBytes)/float64(a.TempFiles)))
	}
}

// behind tells that autovacuum doesn't keep up: its own threshold is a fifth of a table's rows (autovacuum_vacuum_scale_factor).
func (a *adviser) behind() bool {
	return a.DeadRows >= 100_000 && float64(a.DeadRows) > 0.3*float64(a.LiveRows+a.DeadRows)
}

// autovacuum (Automatic Vacuuming): it "is on by default; however, track_counts must also be enabled". Its workers share one cost limit ("the value is distributed
// proportionally among the running autovacuum workers"), so more workers alone do no more.
func (a *adviser) autovacuum() {
	if !a.TrackCounts {
		a.propose("track_counts", "off", "on", "without it autovacuum doesn't know what to do, and this report knows little")
		a.TrackCounts = true
	}
	if !a.Autovacuum {
		a.propose("autovacuum", "off", "on", "without it dead rows stay, statistics go stale, and transaction IDs run out")
		a.Autovacuum = true
	}
	const delay = 2 // milliseconds: the default since Postgres 12
	if a.CostDelayMillis > delay {
		a.propose("autovacuum_vacuum_cost_delay", fmt.Sprintf("%gms", a.CostDelayMillis), "2ms", "a longer pause slows autovacuum more than today's disks need")
		a.CostDelayMillis = delay
	}
	workers, limit := 3, 200 // the defaults
	if a.behind() {
		limit = 1000
		if a.Cores > 0 {
			workers = min(max(a.Cores/2, workers), 8)
		}
	}
	if a.WorkerSlots > 0 {
		workers = min(workers, a.WorkerSlots)
	}
	reason := "these are the defaults, and less doesn't keep up with ingest"
	if a.behind() {
		reason = fmt.Sprintf("%d of %d rows are dead: autovacuum doesn't keep up; its workers share the cost limit", a.DeadRows, a.DeadRows+a.LiveRows)
	}
	if a.AutovacuumWorkers < workers {
		a.propose("autovacuum_max_workers", strconv.Itoa(a.AutovacuumWorkers), strconv.Itoa(workers), "%s", reason)
		a.AutovacuumWorkers = workers
	}
	if a.CostLimit < limit && a.CostDelayMillis > 0 { // without a delay there is no limit
		a.propose("autovacuum_vacuum_cost_limit", strconv.Itoa(a.CostLimit), strconv.Itoa(limit), "%s", reason)
		a.CostLimit = limit
	}
}

// maintenanceWorkMem (Resource Consumption, Memory): "Larger settings might improve performance for vacuuming […] when autovacuum runs, up to autovacuum_max_workers times this
// memory may be allocated, so be careful not to set the default value too high." Before Postgres 17 VACUUM uses no more than 1 GB of it.
func (a *adviser) maintenanceWorkMem() {
	if a.MemoryBytes < gB {
		return
	}
	workers := int64(max(a.AutovacuumWorkers, 1))
	target := min(max(roundMB(a.MemoryBytes/8/workers), 64*mB), gB)
	if a.MaintenanceWorkMem < target/2 || a.MaintenanceWorkMem > max(target, a.MemoryBytes/2/workers) {
		a.bytes("maintenance_work_mem", &a.MaintenanceWorkMem, target, "VACUUM and new indexes take it, up to %d times at once, of %s of memory", workers, size(float64(a.MemoryBytes)))
	}
}

// checkpointTarget (Write Ahead Log, Checkpoints): "Reducing this parameter is not recommended because it causes the checkpoint to complete faster. This results
// in a higher rate of I/O during the checkpoint".
func (a *adviser) checkpointTarget() {
	if a.CheckpointTarget < 0.9 {
		a.propose("checkpoint_completion_target", fmt.Sprintf("%g", a.CheckpointTarget), "0.9", "a checkpoint that is spread over less time writes in bursts, which commits wait for")
		a.CheckpointTarget = 0.9
	}
}

// mostWAL bounds what is proposed for max_wal_size: more takes too long to recover from a crash.
const mostWAL = 64 * gB

// maxWALSize (Write Ahead Log, Checkpoints; chapter Reliability and the Write-Ahead Log, WAL Configuration): a checkpoint is begun before its time when WAL would exceed max_wal_size, which must hold what comes until the next checkpoint
// and while it is written: (1 + checkpoint_completion_target) × checkpoint_timeout. Checkpoints before their time cost full-page images, and so more WAL.
func (a *adviser) maxWALSize() {
	between := a.WALBytesPerSecond * a.CheckpointTimeoutSeconds * (1 + a.CheckpointTarget)
	if between >= float64(mostWAL) {
		between = float64(mostWAL)
	}
	if float64(a.MaxWALSize) >= between {
		return
	}
	target := min(int64(math.Ceil(between*1.25/float64(gB)))*gB, mostWAL)
	a.bytes("max_wal_size", &a.MaxWALSize, target, "at %s/s of WAL, checkpoints come before their time (%d did in the window): %s come between two that are %gs apart",
		size(a.WALBytesPerSecond), a.RequestedCheckpoints, size(between), a.CheckpointTimeoutSeconds)
}

// walCompression (Write Ahead Log, Settings): it "can reduce the WAL volume without increasing the risk of unrecoverable data corruption, but at the cost of some extra CPU". It
// is worth it where full-page images are much of the WAL: each is a page of 8 kB, less its hole.
func (a *adviser) walCompression() {
	const page = 8 << 10
	if a.WALCompression != "off" || a.WALBytes < 16*mB || a.FullPageImages*page < a.WALBytes/4 {
		return
	}
	method := "pglz"
	if slices.Contains(a.WALCompressions, "lz4") {
		method = "lz4"
	}
	a.propose("wal_compression", a.WALCompression, method, "%d full-page images were much of the %s of WAL in the window", a.FullPageImages, size(float64(a.WALBytes)))
	a.WALCompression = method
}

// randomPageCost (Query Planning, Planner Cost Constants): "if your data is likely to be completely in cache, decreasing random_page_cost can be appropriate",
// and what has "a low random read cost relative to sequential, e.g., solid-state drives, might also be better modeled with a lower value for random_page_cost,
// e.g., 1.1". To set it to less than seq_page_cost "is not physically sensible".
func (a *adviser) randomPageCost() {
	text := func(cost float64) string { return fmt.Sprintf("%g", cost) }
	switch target := max(1.1, a.SeqPageCost); {
	case a.RandomPageCost < a.SeqPageCost:
		a.propose("random_page_cost", text(a.RandomPageCost), text(a.SeqPageCost), "it is less than seq_page_cost, which makes no sense for any disk")
		a.RandomPageCost = a.SeqPageCost
	// The ratio alone says little: most blocks that are needed are those that rows are being added to.
	case a.DatabaseBytes <= a.EffectiveCacheSize/2 && a.Blocks >= 10_000 && a.HitRatio >= 0.99 && a.RandomPageCost > 2*target:
		a.propose("random_page_cost", text(a.RandomPageCost), text(target), "the database (%s) fits into the caches, where a page out of order costs little more; on solid-state drives it should be low anyway",
			size(float64(a.DatabaseBytes)))
		a.RandomPageCost = target
	}
}

// roundMB is the next whole number of megabytes.
func roundMB(bytes int64) int64 { return (bytes + mB - 1) / mB * mB }

// sizeSetting is a size as the server's settings are written.
func sizeSetting(bytes int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"TB", gB << 10}, {"GB", gB}, {"MB", mB}, {"kB", kB}} {
		if bytes >= u.size && bytes%u.size == 0 {
			return strconv.FormatInt(bytes/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(bytes, 10) + "B"
}
