module holdfast.dev/cluster/pause

go 1.21
