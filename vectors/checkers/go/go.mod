module birthmark

go 1.24
